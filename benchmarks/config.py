"""Configuration: dataclass defaults <- backbone preset <- ``--config`` TOML <- command line.

Every layer is a pair of values, nested like the dataclass, and where they come from. Every file is
checked by ``build`` or ``override`` against the dataclass that it becomes.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from benchmarks import content, registry
from benchmarks.api import Count, EvaluationSettings, Preset, Task, UserError, Within
from benchmarks.registry import hint

FOLDER = Path(__file__).parent
Layer = tuple[Mapping[str, Any], str]
RULES = 4  # the version of RULES.md
Precision = Literal["fp32", "bf16", "fp16"]
KeepChoice = Literal["auto", "all", "latents", "blocks"]
#: What ``--keep`` said when it was ``--memory``; cells are still described, and hashed, in these.
OLD_KEEP = {"all": "store", "latents": "step", "blocks": "unet"}
Thing = TypeVar("Thing")


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; errors name the file."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        missing = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{path}: {missing}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error})") from error


# Tasks and presets


@dataclass(frozen=True, kw_only=True)
class TaskEvaluation:
    """The table ``[evaluation]`` of a task's file."""

    train_every: Count
    train_images: Count
    unseen_images: Count


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """A task's TOML file. A string instead of prompts: those of the task of that name."""

    train: str | tuple[str, ...]
    unseen: str | tuple[str, ...]
    held_out: tuple[str, ...]
    template: str = "{}"
    guard: tuple[str, ...] = ()
    evaluation: TaskEvaluation


def load_task(name: str) -> Task:
    """A task by name, or one's own from a TOML file.

    Raises UserError for an unknown name, a wrong or missing key, or an empty list of prompts.
    """
    source = Path(name) if name.endswith(".toml") else _named(registry.tasks, name)
    if isinstance(source, Task):
        check_task(source, f"task {name}")
        return source
    return _read_task(source)


def _named(known: registry.Registry, name: str) -> Any:
    """What a name stands for: a path, or what the registered function returns."""
    try:
        source = known.get(name)
    except UserError as error:
        raise UserError(f"{error}; or give the path of a .toml file") from error
    return source if isinstance(source, Path) else source()


def _read_task(path: Path) -> Task:
    file = build(TaskFile, read_toml(path), str(path))
    if file.template.count("{}") != 1:
        raise UserError(f"{path}: template must be a string with {{}} where the prompt goes")
    task = Task(
        name=path.stem,
        train=_prompts(file, "train"),
        unseen=_prompts(file, "unseen"),
        held_out=file.held_out,
        guard=file.guard,
        **dataclasses.asdict(file.evaluation),
    )
    check_task(task, str(path))
    return task


def _prompts(file: TaskFile, split: str) -> tuple[str, ...]:
    given: str | tuple[str, ...] = getattr(file, split)
    prompts = getattr(load_task(given), split) if isinstance(given, str) else given
    return tuple(file.template.replace("{}", prompt) for prompt in prompts)


def check_task(task: Task, where: str) -> None:
    """Raises UserError for empty prompts and numbers outside of their ranges."""
    check_ranges(task, where)
    for key in ("train", "unseen"):
        prompts = getattr(task, key)
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise UserError(f"{where}: {key} must be a list of prompts, none of them empty")
    if task.guard and min(task.train_images, task.unseen_images) < 2:
        raise UserError(f"{where}: with a guard, train_images and unseen_images must be at least 2")


@dataclass(frozen=True, kw_only=True)
class PresetFile:
    """A backbone's TOML file, beside whose keys stands a table per method."""

    model: str
    like: str | None = None
    budget: str | None = None
    task: str | None = None
    resolution: tuple[Count, ...] | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    every: Mapping[str, Any] = field(default_factory=dict)


def load_preset(backbone: str) -> Preset:
    """The preset of a backbone: by name, from a TOML file, or of any diffusers folder or hub id.

    The latter two get the embedded model's settings.
    """
    own = backbone.endswith(".toml")
    if not own and backbone not in registry.backbones.names():
        return dataclasses.replace(load_preset("emoji"), model=backbone)
    source = Path(backbone) if own else _named(registry.backbones, backbone)
    if isinstance(source, Preset):
        check_ranges(source.evaluation, f"backbone {backbone}: evaluation")
        return source
    return _read_preset(source)


def _read_preset(path: Path) -> Preset:
    values = read_toml(path)
    keys = [f.name for f in dataclasses.fields(PresetFile)]
    methods = {key: values.pop(key) for key in values.keys() - set(keys)}
    for name, table in methods.items():
        if name not in registry.methods.names():
            near = hint(name, [*keys, *registry.methods.names()])
            raise UserError(f"{path}: unknown key {name!r}, no method either; {near}")
        _require_table(table, f"{path}, table {name}")
    file = build(PresetFile, values, str(path))
    below = None
    if file.like is not None:
        known = registry.backbones.names()  # a folder or a hub id has no settings of its own
        if not file.like.endswith(".toml") and file.like not in known:
            raise UserError(
                f"{path}: like: unknown backbone {file.like!r}; {hint(file.like, known)}"
            )
        below = load_preset(file.like)
    budget = file.budget or (below and below.budget)
    task = file.task or (below and below.task)
    if not budget or not task or not (below or file.evaluation):
        given = {"budget": budget, "task": task, "evaluation": file.evaluation}
        missing = ", ".join(key for key, value in given.items() if not value)
        raise UserError(f'{path}: missing {missing}; or write like = "sd15"')
    where = f"{path}, table evaluation"
    if below:
        evaluation = override(below.evaluation, file.evaluation, where)
        methods = merged(below.methods, methods)
    else:
        evaluation = build(EvaluationSettings, file.evaluation, where)
    folder = (path.parent / file.model).resolve()
    return Preset(
        name=path.stem,
        model=str(folder) if folder.is_dir() else file.model,
        budget=budget,
        task=task,
        evaluation=evaluation,
        resolution=file.resolution or (below.resolution if below else None),
        every=merged(below.every, file.every) if below else file.every,
        methods=methods,
    )


def backbone_content(backbone: str) -> str:
    """A digest of what a backbone's name does not say of its weights, or ''.

    Of a folder its files; of a name or file of the user's own also which hub id or code it means,
    and the resolution. A hub id is what its name says, best with ``@`` and a commit.
    """
    preset = load_preset(backbone)
    model: Any = preset.model
    ours = registry.backbones.origins.get(backbone, "").startswith("benchmarks/")
    if not isinstance(model, str):
        found = content.code(model)
    elif Path(model).is_dir():
        found = content.model_folder(Path(model))
    else:
        found = "" if ours or model == backbone else model
    return found if ours or not preset.resolution else f"{found} {list(preset.resolution)}"


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, table by table."""
    both = dict(below)
    for key, value in above.items():
        table = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if table else value
    return both


# From tables to dataclasses


def build(cls: type[Thing], values: Any, where: str) -> Thing:
    """The dataclass ``cls`` from a table, and nested tables and lists as its fields want them.

    Raises UserError that says where, which key, what is there, and what is wanted.
    """
    found = checked(cls, values, where)
    fields: Any = dataclasses.fields(cls)  # type: ignore[arg-type]
    missing = [f.name for f in fields if f.name not in found and not _has_default(f)]
    if missing:
        raise UserError(f"{where}: missing {', '.join(missing)}")
    made = cls(**found)
    check_ranges(made, where)
    return made


def override(config: Thing, values: Any, where: str) -> Thing:
    """A copy of a frozen dataclass with ``values`` put in, nested tables into nested dataclasses.

    Raises UserError as ``build`` does.
    """
    found = checked(type(config), values, where, config)
    made: Any = dataclasses.replace(config, **found)  # type: ignore[type-var]
    check_ranges(made, where)
    return made


def check_ranges(thing: Any, where: str) -> None:
    """Raises UserError for a number in a dataclass that is outside of the range of its field.

    In a field without a range only NaN is.
    """
    cls: Any = type(thing)
    known = ranges(cls)
    for entry in dataclasses.fields(thing):
        value = getattr(thing, entry.name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{where}.{entry.name}")
        for number in value if isinstance(value, tuple) else (value,):
            within = known.get(entry.name)
            wrong = within and isinstance(number, int | float) and not within.holds(number)
            if wrong or (isinstance(number, float) and number != number):
                wanted = within or "a number"
                raise UserError(f"{where}: {entry.name} must be {wanted}, not {number!r}")


@functools.cache
def ranges(cls: Any) -> dict[str, Within]:
    """The ranges of a dataclass's fields, as their types or those of its bases say."""
    found: dict[str, Within] = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        for name, kind in typing.get_type_hints(base, include_extras=True).items():
            if within := _within(kind):
                found[name] = within
    return found


def _within(kind: Any) -> Within | None:
    """The range that stands in a type, also in one of its parts."""
    notes = [note for note in getattr(kind, "__metadata__", ()) if isinstance(note, Within)]
    inner = filter(None, map(_within, typing.get_args(kind)))
    return notes[0] if notes else next(inner, None)


def checked(cls: type, values: Any, where: str, below: Any = None) -> dict[str, Any]:
    """``values`` as the fields of ``cls`` want them; tables go over the dataclasses in ``below``.

    Raises UserError as ``build`` does, but nothing need be there.
    """
    _require_table(values, where)
    kinds = _kinds(cls)
    found = {}
    for key, value in values.items():
        if key not in kinds:
            raise UserError(f"{where}: unknown key {key!r}; {hint(key, kinds)}")
        inner = getattr(below, key, None)
        if dataclasses.is_dataclass(inner):
            found[key] = override(inner, value, f"{where}.{key}")
            continue
        found[key] = _converted(kinds[key], value, f"{where}.{key}")
        if found[key] is NO_MATCH:
            raise UserError(f"{where}: {key} must be {_wanted(kinds[key])}, not {value!r}")
    return found


@functools.cache
def _kinds(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    hints = typing.get_type_hints(cls)
    fields: Any = dataclasses.fields(cls)
    return {f.name: hints[f.name] for f in fields}


def _require_table(values: Any, where: str) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be a table, not {values!r}")


def _has_default(entry: Any) -> bool:
    missing = dataclasses.MISSING
    return entry.default is not missing or entry.default_factory is not missing


NO_MATCH = object()


def _converted(kind: Any, value: Any, where: str) -> Any:
    """``value`` if it is of the type, an int as the float that is wanted, a list as a tuple, a
    table as the dataclass; else NO_MATCH. Mistakes inside of tables raise UserError."""
    origin = typing.get_origin(kind)
    options = typing.get_args(kind)
    if kind is Any:
        return value
    if origin is typing.Literal:
        return value if value in options else NO_MATCH
    if origin in (typing.Union, types.UnionType):
        found = (_converted(option, value, where) for option in options)
        return next((v for v in found if v is not NO_MATCH), NO_MATCH)
    if origin in (tuple, Sequence) and isinstance(value, list | tuple):
        items = tuple(_converted(options[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        return NO_MATCH if NO_MATCH in items else items
    if origin is Mapping and isinstance(value, Mapping):
        table = {k: _converted(options[1], v, f"{where}.{k}") for k, v in value.items()}
        return NO_MATCH if NO_MATCH in table.values() else table
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(kind, value, where)  # type: ignore[arg-type]
    if kind is float and type(value) is int:
        return float(value)
    return value if type(value) is kind else NO_MATCH


def _wanted(kind: Any) -> str:
    """A type in words."""
    origin = typing.get_origin(kind)
    options = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_wanted, options))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, options))}"
    if origin in (tuple, Sequence):
        tables = dataclasses.is_dataclass(options[0])
        return "a list of tables" if tables else f"a list of {_wanted(options[0])}"
    if origin is Mapping and dataclasses.is_dataclass(options[1]):
        return "a table of tables"
    if origin is Mapping or dataclasses.is_dataclass(kind):
        return "a table"
    return "None" if kind is types.NoneType else str(getattr(kind, "__name__", kind))


# A method's Config


def method_layers(name: str, preset: Preset, *more: Layer) -> list[Layer]:
    """What goes over the defaults of a method's Config: the preset, the variant's values, ``more``.

    A variant takes the preset of the method it is a variant of, then its own.
    """
    registry.methods.get(name)
    variant = registry.methods.variants.get(name)
    layers: list[Layer] = [(preset.every, f"preset {preset.name}, table every")]
    if variant:
        whose = f"preset {preset.name}, table {variant.of}"
        layers += [(preset.methods.get(variant.of, {}), whose), (variant.values, f"variant {name}")]
    layers.append((preset.methods.get(name, {}), f"preset {preset.name}, table {name}"))
    return [*layers, *more]


def method_config(name: str, preset: Preset, *more: Layer) -> tuple[Any, dict[str, str]]:
    """A method's Config with all its layers over it, and where each value, by dotted name, is from.

    Raises UserError for a layer that does not fit, naming it.
    """
    config = registry.methods.get(name).Config()
    check_ranges(config, f"method {name}: default of Config")
    sources = dict.fromkeys(flat(dataclasses.asdict(config)), "default")
    for values, where in method_layers(name, preset, *more):
        config = override(config, values, where)
        sources |= dict.fromkeys(flat(values), where)
    return config, sources


def method_defaults(name: str, preset: Preset, *more: Layer) -> Any:
    """A method's Config with all its layers over it."""
    return method_config(name, preset, *more)[0]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found
