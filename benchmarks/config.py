"""Configuration: dataclass defaults <- backbone preset <- ``--config`` TOML <- command line.

Every layer is a pair of values, nested like the dataclass, and where they come from.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from benchmarks import registry
from benchmarks.api import Preset, Task, UserError

FOLDER = Path(__file__).parent
Layer = tuple[Mapping[str, Any], str]
RULES = 3  # the version of RULES.md
Precision = Literal["fp32", "bf16", "fp16"]
KeepChoice = Literal["auto", "all", "latents", "blocks"]
#: What ``--keep`` said when it was ``--memory``; cells are still described, and hashed, in these.
OLD_KEEP = {"all": "store", "latents": "step", "blocks": "unet"}


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; errors name the file."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        missing = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{path}: {missing}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error})") from error


def load_task(name: str) -> Task:
    """A task by name, or one's own from a TOML file.

    Raises UserError for an unknown name, a missing key or an empty list of prompts.
    """
    source = Path(name) if name.endswith(".toml") else _named(registry.tasks, name)
    return source if isinstance(source, Task) else _read_task(source)


def _named(known: registry.Registry, name: str) -> Any:
    """What a name stands for: a path, or what the registered function returns."""
    try:
        source = known.get(name)
    except UserError as error:
        raise UserError(f"{error}; or give the path of a .toml file") from error
    return source if isinstance(source, Path) else source()


def _read_task(path: Path) -> Task:
    values = read_toml(path)
    evaluation = values.pop("evaluation", {})
    if not isinstance(evaluation, dict):
        raise UserError(f"{path}: evaluation must be a table")
    values |= evaluation
    template = values.pop("template", "{}")
    if not isinstance(template, str) or template.count("{}") != 1:
        raise UserError(f"{path}: template must be a string with {{}} where the prompt goes")
    for key in ("train", "unseen"):
        if isinstance(values.get(key), str):  # another task's
            values[key] = list(getattr(load_task(values[key]), key))
        if isinstance(values.get(key), list):
            values[key] = [template.replace("{}", str(prompt)) for prompt in values[key]]
    missing = [f.name for f in dataclasses.fields(Task) if f.name not in {*values, "name"}]
    if missing:
        model = "benchmarks/tasks/animals.toml is a model"
        raise UserError(f"{path}: missing {', '.join(missing)}; {model}")
    task = Task(**_checked(Task, {"name": path.stem} | values, str(path)))
    for key in ("train", "unseen"):
        prompts = getattr(task, key)
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise UserError(f"{path}: {key} must be a list of prompts, none of them empty")
    for key in ("train_every", "train_images", "unseen_images"):
        if getattr(task, key) < 1:
            raise UserError(f"{path}: {key} must be at least 1")
    return task


def load_backbone(name: str) -> Preset:
    """A backbone by name, from a TOML file, or any diffusers folder or hub id.

    The latter two get the embedded model's preset.
    """
    own = name.endswith(".toml")
    if not own and name not in registry.backbones.names():
        return dataclasses.replace(load_backbone("emoji"), model=name)
    source = Path(name) if own else _named(registry.backbones, name)
    return source if isinstance(source, Preset) else _read_backbone(source)


def _read_backbone(path: Path) -> Preset:
    preset = read_toml(path)
    if not isinstance(preset.get("model"), str):
        raise UserError(f"{path}: model must be a diffusers folder or a hub id")
    model, like = preset.pop("model"), preset.pop("like", None)
    if like is not None:
        preset = merged(load_backbone(like).preset, preset)
    missing = [key for key in ("budget", "task", "evaluation") if key not in preset]
    if missing:
        raise UserError(f'{path}: missing {", ".join(missing)}; or write like = "sd15"')
    folder = (path.parent / model).resolve()
    return Preset(name=path.stem, model=str(folder) if folder.is_dir() else model, preset=preset)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, table by table."""
    both = dict(below)
    for key, value in above.items():
        table = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if table else value
    return both


def load_preset(backbone: str) -> dict[str, Any]:
    """The settings for a backbone, and whose they are under ``name``."""
    found = load_backbone(backbone)
    return {**found.preset, "name": found.name}


def override(config: Any, values: Mapping[str, Any], where: str) -> Any:
    """A copy of a frozen dataclass with ``values`` put in, nested tables into nested dataclasses.

    An unknown key or a wrong type is an error that names ``where``, the key, and the type or the
    nearest field.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be a table, not {values!r}")
    tables = {f.name for f in dataclasses.fields(config) if _is_table(getattr(config, f.name))}
    changes = {
        key: override(getattr(config, key), values[key], f"{where}.{key}")
        for key in tables & set(values)
    }
    plain = {key: value for key, value in values.items() if key not in tables}
    return dataclasses.replace(config, **changes, **_checked(type(config), plain, where))


def _is_table(value: Any) -> bool:
    return dataclasses.is_dataclass(value)


def _checked(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``values`` as the fields of ``cls`` want them."""
    kinds, good = typing.get_type_hints(cls), {}
    for key, value in values.items():
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(kinds)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
        good[key] = _converted(kinds[key], value)
        if good[key] is NO_MATCH:
            kind = getattr(kinds[key], "__name__", str(kinds[key]))
            kind = kind if isinstance(kinds[key], type) else str(kinds[key]).replace("typing.", "")
            raise UserError(f"{where}: {key} must be {kind}, not {value!r}")
    return good


NO_MATCH = object()


def _converted(kind: Any, value: Any) -> Any:
    """``value`` if it is of the type, an int as the float that is wanted, a list as a tuple."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return value if value in options else NO_MATCH
    if origin in (typing.Union, types.UnionType):
        found = (_converted(option, value) for option in options)
        return next((v for v in found if v is not NO_MATCH), NO_MATCH)
    if origin is tuple and isinstance(value, list | tuple):
        parts = tuple(_converted(options[0], v) for v in value)
        return NO_MATCH if NO_MATCH in parts else parts
    if kind is float and type(value) is int:
        return float(value)
    return value if type(value) is kind else NO_MATCH


def method_layers(name: str, preset: Mapping[str, Any], *more: Layer) -> list[Layer]:
    """What goes over the defaults of a method's Config: the preset, its being a variant, ``more``.

    A variant takes the preset of the method it is a variant of, then its own.
    """
    whose = f"preset {preset.get('name', '')}".strip()
    layers = [(preset.get(name, {}), f"{whose}, table {name}")]
    registry.methods.get(name)
    variant = registry.methods.variants.get(name)
    if variant:
        layers.insert(0, (preset.get(variant.of, {}), f"{whose}, table {variant.of}"))
        layers.insert(1, (variant.values, f"variant {name}"))
    return [*layers, *more]


def method_defaults(name: str, preset: Mapping[str, Any], *more: Layer) -> Any:
    """A method's Config with all its layers over it."""
    config = registry.methods.get(name).Config()
    for values, where in method_layers(name, preset, *more):
        config = override(config, values, where)
    return config


def method_sources(name: str, preset: Mapping[str, Any], *more: Layer) -> dict[str, str]:
    """Where each value of ``method_defaults`` comes from, by its dotted name."""
    sources = dict.fromkeys(
        flat(dataclasses.asdict(registry.methods.get(name).Config())), "default"
    )
    for values, where in method_layers(name, preset, *more):
        sources |= dict.fromkeys(flat(values), where)
    return sources


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found
