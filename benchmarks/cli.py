"""The command line of every command: tyro's, with errors as one line, and what ``--help`` says."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import registry
from benchmarks.api import UserError
from benchmarks.config import OLD_KEEP, ranges


@dataclass(frozen=True, kw_only=True)
class Launching:
    """Which of many cells run, and where."""

    shard: str = "1/1"
    """I/N: only every N-th cell, from the I-th (counted from 1), and no report."""
    launch: Literal["local", "slurm"] | None = None
    """Run each cell as a process, or as a Slurm job, from its own file."""
    jobs: int | None = None
    """With --launch: how many at once. Default: 1 locally, all on Slurm."""
    partition: str | None = None
    """With --launch slurm: where. Other settings through sbatch's environment (SBATCH_GPUS=1)."""

    @property
    def whole(self) -> bool:
        """Whether all cells run."""
        return self.shard == "1/1"

    def share(self, cells: Sequence[Any], may_be_empty: bool = False) -> list[Any]:
        """The cells of this shard. Raises UserError if all are in others."""
        mine = list(cells[parse_shard(self.shard)])
        if cells and not mine and not may_be_empty:
            raise UserError(f"--shard {self.shard}: there are only {len(cells)} cells")
        return mine


#: As a field of a command's options, whose own names come without a prefix.
LAUNCHING = Annotated[Launching, tyro.conf.arg(name="")]


def parse_shard(text: str) -> slice:
    """``I/N`` to the slice with every N-th item from the I-th, counted from 1."""
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return slice(int(index) - 1, None, int(count))
    raise UserError(f"--shard {text}: write I/N with I from 1 to N")


class Helped(SystemExit):
    """``--help`` was asked for and printed. Any other SystemExit is somebody else's."""


def cli(form: Any, **options: Any) -> Any:
    """``tyro.cli``, with its framed and titled errors as one line. Raises UserError and Helped."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            # Comments explain the code; to look for help in them takes a tenth of the time.
            return tyro.cli(form, config=(tyro.conf.HelptextFromCommentsOff,), **options)
        except SystemExit as stop:
            if not stop.code:
                raise Helped(0) from None
    raise UserError(" ".join(re.sub("╭.*╮|[─-╿]", " ", errors.getvalue()).split()))


def load_plugins(paths: Sequence[Path]) -> None:
    """Run the Python files of ``--plugin``."""
    for path in paths:
        registry.load_plugin(path)


def given(form: Any, arguments: Sequence[str]) -> set[str]:
    """The dotted names of what the command line itself says: the rest follows its defaults.

    ``form`` is a dataclass with a default for every field. It is filled twice, from different
    defaults; what comes out the same both times was typed.
    """
    one = form()
    other = _changed(one)
    first, second = (cli(form, args=list(arguments), default=start) for start in (one, other))
    return set(_same(first, second))


def _changed(config: Any) -> Any:
    """A dataclass of which every value is another one."""
    kinds = typing.get_type_hints(type(config))
    changes = {
        f.name: _other(getattr(config, f.name), kinds[f.name]) for f in dataclasses.fields(config)
    }
    return dataclasses.replace(config, **changes)


def _other(value: Any, kind: Any) -> Any:
    """Another value than ``value`` of the type ``kind``."""
    origin = typing.get_origin(kind)
    options = typing.get_args(kind)
    if dataclasses.is_dataclass(value):
        return _changed(value)
    if origin is typing.Literal:
        return next((option for option in options if option != value), value)
    if type(None) in options:
        (real, *_) = (option for option in options if option is not type(None))
        return None if value is not None else _other(None, real)
    if origin is tuple:
        return (*(value or ()), _other(None, options[0]))
    if kind is bool:
        return not value
    if kind in (int, float):
        return kind(0 if value else 1)
    return kind(f"{value}?")


def _same(first: Any, second: Any, prefix: str = "") -> Iterator[str]:
    for entry in dataclasses.fields(first):
        one = getattr(first, entry.name)
        other = getattr(second, entry.name)
        if dataclasses.is_dataclass(one):
            yield from _same(one, other, f"{prefix}{entry.name}.")
        elif one == other:
            yield prefix + entry.name


def renamed(arguments: list[str]) -> list[str]:
    """The arguments, with ``--memory`` and its values as ``--keep`` and its: it was called so."""
    new = {old: keep for keep, old in OLD_KEEP.items()}
    found: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option == "--memory":
            found.append(f"--keep{equals}{new.get(value, value)}")
        elif found and found[-1] == "--keep":
            found.append(new.get(argument, argument))
        else:
            found.append(argument)
    return found


def meanings(cls: Any) -> dict[str, str]:
    """What each annotated name of a class means: its ``help`` metadata, or the docstring under it.

    Of a dataclass every field is there, if only with an empty text.
    """
    found: dict[str, str] = {}
    if dataclasses.is_dataclass(cls):
        found = {f.name: f.metadata.get("help", "") for f in dataclasses.fields(cls)}
        if all(found.values()):  # reading sources takes most of the time of ``--help``
            return found
    for base in cls.__mro__[:-1]:
        for name, text in _docstrings(base).items():
            found[name] = found.get(name) or text
    return found


@functools.cache
def _docstrings(cls: Any) -> dict[str, str]:
    """The docstrings under the annotated names of one class."""
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError):  # typed in at a prompt, or built in
        return {}
    assert isinstance(node, ast.ClassDef)
    found = {}
    for line, below in zip(node.body, node.body[1:], strict=False):
        match line, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def explained(config: Any, sources: Mapping[str, str], prefix: str = "", note: str = "") -> Any:
    """A Config that looks the same, but whose fields' help says which layer set their values.

    ``sources`` names the layer of each dotted field name. What is said of a table, ``note``, is
    said of each of its fields: where the defaults of a method's optimizer come from, say.
    """
    cls: Any = type(config)
    fields = []
    kinds = typing.get_type_hints(cls)
    texts = {name: f"{text} {note}".strip() for name, text in meanings(cls).items()}
    limits = {name: f"; {within}" for name, within in ranges(cls).items()}
    for name in texts:
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            value = explained(value, sources, f"{prefix}{name}.", texts[name])
            fields.append((name, type(value), dataclasses.field(default=value)))
            continue
        source = sources[prefix + name]
        text = texts[name] + limits.get(name, "")
        text = text if source == "default" else f"{text}; set by {source}"
        entry = dataclasses.field(default=value, metadata={"help": text})
        fields.append((name, kinds[name], entry))
    like = dataclasses.make_dataclass(cls.__name__, fields, frozen=True, kw_only=True)
    like.__doc__ = cls.__doc__
    return like()
