"""One lazy registry for methods, rewards and backbones.

Names come from three places: the modules listed in ``BUILT_IN`` (imported only when needed),
entry points of installed packages (groups ``alignprop_bench.methods`` and ``.rewards``), and files
given with ``--plugin``. A name is never overwritten.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.api import Method, Reward, UserError

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Variant:
    """A name for a registered class with some of its configuration set."""

    of: str
    values: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.of} with {', '.join(f'{k} = {v}' for k, v in _flat(self.values))}"


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = prefix + key
        rows += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return rows


class Registry:
    """Maps the names of one kind of thing to classes and says where each came from."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self.entries: dict[str, type] = {}
        self.origins: dict[str, str] = {}
        self.variants: dict[str, Variant] = {}
        self.broken: dict[str, str] = {}  # where -> why it could not be imported
        self._loaded = False

    def register(self, name: str) -> Callable[[type[Entry]], type[Entry]]:
        """Class decorator that adds a class under ``name``."""

        def add(cls: type[Entry]) -> type[Entry]:
            if name in self.entries:
                raise UserError(
                    f"{self.kind} {name!r} from {cls.__module__} is already registered by "
                    f"{self.origins[name]}; give it another name"
                )
            self.entries[name], self.origins[name] = cls, cls.__module__
            return cls

        return add

    def variant(self, name: str, of: str, **values: Any) -> None:
        """Make ``of`` with ``values`` over its configuration known as ``name``."""
        self.register(name)(self.entries[of])
        self.variants[name] = Variant(of, values)

    def get(self, name: str) -> type:
        """The class of that name; an unknown name is an error with the nearest known one."""
        self.load()
        if name not in self.entries:
            near = difflib.get_close_matches(name, self.entries, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self.names())}"
            raise UserError(f"unknown {self.kind} {name!r}; {hint}")
        return self.entries[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self.load()
        return sorted(self.entries)

    def load(self) -> None:
        """Import the built-in modules and the entry points, once; a broken one is noted."""
        if self._loaded:
            return
        self._loaded = True
        folder = Path(__file__).parent.parent / self.package
        for path in sorted(folder.glob("[!_]*.py")):
            importlib.import_module(f"{self.package}.{path.stem}")
        for point in entry_points(group=f"alignprop_bench.{self.package}"):
            try:
                point.load()
            except Exception as error:  # noqa: BLE001 - a foreign plugin may fail in any way
                self.broken[f"{point.name} ({point.value})"] = f"{type(error).__name__}: {error}"


methods = Registry("method", "methods")
rewards = Registry("reward", "rewards")


def register_method(name: str) -> Callable[[type[Method]], type[Method]]:
    """Decorator: make a ``Method`` known as ``name``."""
    return methods.register(name)


def method_variant(name: str, of: str, **values: Any) -> None:
    """Make a registered method with ``values`` over its configuration known as ``name``."""
    methods.variant(name, of, **values)


def register_reward(name: str) -> Callable[[type[Reward]], type[Reward]]:
    """Decorator: make a ``Reward`` known as ``name``."""
    return rewards.register(name)


def load_plugin(path: Path) -> None:
    """Run a Python file that registers methods or rewards. It is code: it can do anything."""
    spec = importlib.util.spec_from_file_location(f"plugin_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--plugin {path}: {type(error).__name__}: {error}") from error
