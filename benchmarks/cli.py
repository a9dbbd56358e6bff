"""The command line of every command: tyro's, with errors as one line, and what ``--help`` says."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import re
import textwrap
import typing
from collections.abc import Mapping
from typing import Any

import tyro

from benchmarks.api import UserError
from benchmarks.config import OLD_KEEP


def cli(form: Any, **options: Any) -> Any:
    """``tyro.cli``, with its framed and titled errors as one line. Raises UserError."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            return tyro.cli(form, **options)
        except SystemExit as stop:
            if not stop.code:  # help
                raise
    raise UserError(" ".join(re.sub("╭.*╮|[─-╿]", " ", errors.getvalue()).split()))


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
    """What each field of a dataclass means: its ``help`` metadata, or the docstring under it."""
    found = {f.name: f.metadata.get("help", "") for f in dataclasses.fields(cls)}
    try:
        source = inspect.getsource(cls)
    except OSError:  # typed in at a prompt
        return found
    (node,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(node, ast.ClassDef)
    for line, below in zip(node.body, node.body[1:], strict=False):
        match line, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(value=str(text))):
                found[name] = found[name] or " ".join(text.split())
    return found


def explained(config: Any, sources: Mapping[str, str], prefix: str = "", note: str = "") -> Any:
    """A Config that looks the same, but whose fields' help says which layer set their values.

    ``sources`` names the layer of each dotted field name. What is said of a table, ``note``, is
    said of each of its fields: where the defaults of a method's optimizer come from, say.
    """
    cls, fields = type(config), []
    kinds = typing.get_type_hints(cls)
    texts = {name: f"{text} {note}".strip() for name, text in meanings(cls).items()}
    for name in texts:
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            value = explained(value, sources, f"{prefix}{name}.", texts[name])
            fields.append((name, type(value), dataclasses.field(default=value)))
            continue
        source = sources[prefix + name]
        text = texts[name] if source == "default" else f"{texts[name]}; set by {source}"
        entry = dataclasses.field(default=value, metadata={"help": text})
        fields.append((name, kinds[name], entry))
    like = dataclasses.make_dataclass(cls.__name__, fields, frozen=True, kw_only=True)
    like.__doc__ = cls.__doc__
    return like()
