"""Write ``docs/reference.md`` from the code.

Everything in it is said in the code, once; the test that holds it current runs ``text``.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import tyro

from benchmarks import api, config, registry, streams
from benchmarks.api import UserError
from benchmarks.cli import meanings
from benchmarks.commands import (
    check,
    evaluate,
    new,
    plan,
    report,
    run,
    search,
    select,
    status,
    suite,
)
from benchmarks.commands import list as listing

FILE = registry.ROOT / "docs" / "reference.md"
#: What a method or a reward is written against.
INTERFACE = (
    api.Method,
    api.StepResult,
    api.Selection,
    api.Context,
    api.Backbone,
    api.Sampler,
    api.Trajectory,
    streams.Streams,
    api.Reward,
    api.Task,
    api.EvaluationSettings,
    api.Preset,
)
#: Options by what one types.
OPTIONS = {
    "run": run.Options,
    "run FILE": run.FileOptions,
    "suite": suite.Options,
    "plan": plan.Options,
    "list": listing.Options,
    "new": new.Options,
    "check": check.Options,
    "status": status.Options,
    "evaluate": evaluate.Options,
    "select": select.Options,
    "search": search.Options,
    "report": report.Options,
}


def main(arguments: list[str]) -> int:
    """Write the page."""
    if arguments:
        raise UserError("reference: takes no options; it writes docs/reference.md")
    FILE.write_text(text(), "utf-8")
    return 0


def text() -> str:
    """The whole page."""
    parts = [
        "# Reference",
        "Written by `python run_benchmark.py reference` from docstrings and configurations.",
        "## Commands",
        "A name in capitals is a word without a dash. Without a verb it is `run`.",
        *(f"### {verb}\n\n{_options(cls)}" for verb, cls in OPTIONS.items()),
        "## Methods",
        "The default is the method's own, for Stable Diffusion v1.5; the last column is what the "
        "embedded model's preset sets. An option is written `--METHOD.OPTION`, in a TOML file "
        "`OPTION = VALUE` in the table `[METHOD]`.",
        *_methods(),
        "## Selections",
        "What draws better pictures without training; options of `select --config`'s file.",
        *_selections(),
        "## Rewards",
        _rewards(),
        "## Backbones",
        _listed(registry.backbones),
        "## Tasks",
        _listed(registry.tasks),
        "## Suites",
        _listed(registry.suites),
        "## Interface",
        *(_interface(cls) for cls in INTERFACE),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |" for row in lines
    )


def _options(cls: Any) -> str:
    return _table(["option", "meaning", "default"], list(_option_rows(cls)))


def _option_rows(cls: Any) -> Iterator[list[str]]:
    said = meanings(cls)
    kinds = typing.get_type_hints(cls, include_extras=True)
    for entry in dataclasses.fields(cls):
        if entry.default_factory is not dataclasses.MISSING:  # options that several verbs have
            yield from _option_rows(entry.default_factory)
            continue
        default = entry.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        missing = default is None or default is dataclasses.MISSING
        positional = tyro.conf.Positional[int].__metadata__[0] in getattr(  # type: ignore[attr-defined]
            kinds[entry.name], "__metadata__", ()
        )
        name = entry.name.upper() if positional else f"--{entry.name}".replace("_", "-")
        yield [f"`{name}`", said[entry.name], f"`{shown}`" if shown and not missing else ""]


def _methods() -> Iterator[str]:
    preset = config.load_preset("emoji")
    for name in registry.methods.names():
        cls = registry.methods.get(name)
        if name in registry.methods.variants:
            yield f"### {name}\n\n{registry.methods.summaries[name]}."
            continue
        small = config.flat(preset.methods.get(name, {}))
        rows = [
            [
                f"`{option}`",
                kind,
                text,
                f"`{default}`",
                f"`{small[option]}`" if option in small else "",
            ]
            for option, kind, text, default in _fields(cls.Config())
        ]
        head = ["option", "type", "meaning and source", "default", "embedded model"]
        about = f"{cls.__doc__.splitlines()[0]} Needs: {', '.join(sorted(cls.needs))}."
        yield f"### {name}\n\n{about} `{cls.__module__}`\n\n{_table(head, rows)}"


def _selections() -> Iterator[str]:
    for name in registry.selections.names():
        cls = registry.selections.get(name)
        rows = [
            [f"`{option}`", kind, text, f"`{default}`"]
            for option, kind, text, default in _fields(cls.Config())
        ]
        head = ["option", "type", "meaning and source", "default"]
        about = f"{cls.__doc__} Needs: {', '.join(sorted(cls.needs))}."
        yield f"### {name}\n\n{about} `{cls.__module__}`\n\n{_table(head, rows)}"


def _fields(settings: Any, prefix: str = "", note: str = "") -> Iterator[tuple[str, str, str, Any]]:
    cls: Any = type(settings)
    kinds, limits = typing.get_type_hints(cls), config.ranges(cls)
    said = meanings(cls)
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{entry.name}.", said[entry.name])
        else:
            text = f"{said[entry.name]} {note}".strip()
            limit = f", {limits[entry.name]}" if entry.name in limits else ""
            yield prefix + entry.name, _kind(kinds[entry.name]) + limit, text, value


def _kind(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _rewards() -> str:
    rows = []
    for name in registry.rewards.names():
        cls = registry.rewards.get(name)
        gradient = "yes" if cls.differentiable else f"no; stand-in: {cls.stand_in or 'none'}"
        rows.append(
            [f"`{name}`", registry.rewards.summaries[name], cls.unit, gradient, cls.reference]
        )
    return _table(["name", "meaning", "unit", "gradient", "reference"], rows)


def _listed(known: registry.Registry) -> str:
    rows = [[f"`{n}`", known.summaries[n], f"`{known.origins[n]}`"] for n in known.names()]
    return _table(["name", "what", "where"], rows)


def _interface(cls: Any) -> str:
    lines = [f"### {cls.__name__}", f"`{cls.__module__}`. {inspect.getdoc(cls)}"]
    rows = [[f"`{name}`", text] for name, text in _members(cls)]
    if rows:
        lines.append(_table(["member", "what"], rows))
    return "\n\n".join(lines)


def _members(cls: Any) -> Iterator[tuple[str, str]]:
    """Fields and class variables with a docstring, functions and properties, each with its text."""
    for name, said in meanings(cls).items():
        if said:
            yield name, said
    members: Mapping[str, Any] = vars(cls)
    for name, member in members.items():
        member = getattr(member, "__func__", member)
        said = inspect.getdoc(getattr(member, "fget", member)) or ""
        if (name.startswith("_") and name != "__call__") or not said:
            continue
        if inspect.isfunction(member):
            names = [p for p in inspect.signature(member).parameters if p not in ("self", "cls")]
            yield f"{name}({', '.join(names)})", " ".join(said.split())
        elif isinstance(member, property):
            yield name, " ".join(said.split())
