"""Configuration: dataclass defaults <- backbone preset <- ``--config`` TOML <- command line."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import registry
from benchmarks.api import UserError

FOLDER = Path(__file__).parent
RULES = 1  # the version of RULES.md
Precision = Literal["fp32", "bf16", "fp16"]
BUDGET_KINDS = ("flops", "queries", "nfe", "steps", "seconds")


@dataclass(frozen=True)
class Budget:
    """How much one cell may spend: floating-point operations, reward queries, denoiser
    evaluations, optimizer steps or device seconds."""

    kind: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``flops=4e13`` and the like; anything else is an error."""
        kind, _, amount = text.partition("=")
        try:
            value = float(amount)
        except ValueError:
            value = -1.0
        if kind not in BUDGET_KINDS or not 0 < value < float("inf"):
            raise UserError(
                f"--budget {text}: write KIND=AMOUNT with a positive amount and a KIND of "
                f"{', '.join(BUDGET_KINDS)}"
            )
        return cls(kind, value)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Prompts, splits and how they are evaluated."""

    name: str
    train: tuple[str, ...]
    unseen: tuple[str, ...]
    held_out: tuple[str, ...]
    train_every: int
    train_images: int
    unseen_images: int

    def evaluation_prompts(self) -> dict[str, list[str]]:
        """Split -> one prompt per picture."""
        chosen = self.train[:: self.train_every]
        return {
            "train": [p for p in chosen for _ in range(self.train_images)],
            "unseen": [p for p in self.unseen for _ in range(self.unseen_images)],
        }


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; errors name the file."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error})") from error


def task_names() -> list[str]:
    """The tasks that come with the suite."""
    return sorted(path.stem for path in (FOLDER / "tasks").glob("*.toml"))


def load_task(name: str) -> Task:
    """A task by name, or one's own from a TOML file.

    Raises UserError for an unknown name, a missing key or an empty list of prompts.
    """
    own = name.endswith(".toml")
    if not own and name not in task_names():
        raise UserError(
            f"unknown task {name!r}; known: {', '.join(task_names())}, or a path ending in .toml"
        )
    path = Path(name) if own else FOLDER / "tasks" / f"{name}.toml"
    values = read_toml(path)
    try:
        lists: dict[str, Any] = {k: tuple(values[k]) for k in ("train", "unseen", "held_out")}
        task = Task(name=path.stem, **lists, **values["evaluation"])
    except (KeyError, TypeError) as error:
        model = "benchmarks/tasks/animals.toml"
        raise UserError(f"{path}: missing or unknown key {error}; {model} is a model") from error
    for key in ("train", "unseen"):
        if not lists[key] or not all(isinstance(p, str) and p.strip() for p in lists[key]):
            raise UserError(f"{path}: {key} must be a list of prompts, none of them empty")
    return task


def load_preset(backbone: str) -> dict[str, Any]:
    """The settings for a backbone: SD v1.5 has its own, everything else uses the embedded one's."""
    return read_toml(FOLDER / "presets" / ("sd15.toml" if backbone == "sd15" else "emoji.toml"))


def override(config: Any, values: dict[str, Any], where: str) -> Any:
    """A copy of a frozen dataclass with ``values`` put in, nested tables into nested dataclasses.

    An unknown key or a wrong type is an error that names ``where`` and the nearest field.
    """
    types = typing.get_type_hints(type(config))
    changes = {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(types)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
        current = getattr(config, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {key} must be a table")
            changes[key] = override(current, value, f"{where}.{key}")
        else:
            changes[key] = _checked(types[key], value, f"{where}.{key}")
    return dataclasses.replace(config, **changes)


def _checked(kind: Any, value: Any, where: str) -> Any:
    options = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        good = value in options
    else:
        kinds = options or (kind,)
        if float in kinds and type(value) is int:
            value = float(value)
        good = type(value) in kinds
    if not good:
        raise UserError(f"{where}: {value!r} is not of type {getattr(kind, '__name__', kind)}")
    return value


def method_defaults(name: str, preset: dict[str, Any], *more: tuple[dict[str, Any], str]) -> Any:
    """A method's Config: its defaults, the preset, what makes it a variant, then ``more`` layers.

    A layer is values and where they come from.
    """
    method, variant = registry.methods.get(name), registry.methods.variants.get(name)
    layers = [(preset.get(name, {}), f"preset, table {name}")]
    if variant:
        layers.insert(0, (preset.get(variant.of, {}), f"preset, table {variant.of}"))
        layers.insert(1, (variant.values, f"variant {name}"))
    config = method.Config()  # type: ignore[attr-defined]
    for values, where in [*layers, *more]:
        config = override(config, values, where)
    return config
