"""One lazy registry for methods, selections, rewards, backbones, tasks and suites.

Names come from three sources: files in this tree, entry points of installed packages (group
``alignprop_bench.plugins``: modules that register things), and files given with ``--plugin``. The
tree's Python files are read for the names they register and imported only when one of these is
asked for; its TOML files are entries under their own names. A name is never overwritten, and what
cannot be imported is listed with its reason and stops nobody else.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import fnmatch
import functools
import importlib
import importlib.util
import itertools
import keyword
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.api import Method, Reward, Selection, UserError

if TYPE_CHECKING:
    from benchmarks.api import Preset, Task

ROOT = Path(__file__).parent.parent
GROUP = "alignprop_bench.plugins"
Thing = TypeVar("Thing", bound=Callable[..., Any])

#: What could not be imported -> why.
broken: dict[str, str] = {}
#: The plugin that is being imported, as ``--list`` will name it.
_source: str | None = None


def hint(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not among ``known``: the nearest one, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def first_sentence(text: str) -> str:
    """The first sentence of a docstring or a comment, on one line."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph)[0]


@dataclass(frozen=True)
class Variant:
    """A name for a registered class with some of its configuration set."""

    of: str
    values: dict[str, Any]


class Registry:
    """Maps the names of one kind of thing to things, and says what and whence each is."""

    def __init__(self, kind: str, folder: str) -> None:
        self.kind, self.folder = kind, ROOT / folder
        self.entries: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.summaries: dict[str, str] = {}
        self.variants: dict[str, Variant] = {}
        self._modules: dict[str, str] = {}  # of names in this tree, imported or not

    def register(self, name: str) -> Callable[[Thing], Thing]:
        """Decorator that adds a class or function.

        Raises UserError if the name is taken or no name, or if the thing cannot be of this kind.
        """

        def add(thing: Thing) -> Thing:
            self._add(name, thing, first_sentence(thing.__doc__ or ""))
            return thing

        return add

    def variant(self, name: str, of: str, **values: Any) -> None:
        """Make ``of`` with ``values`` over its configuration known as ``name``."""
        text = ", ".join(f"{key}={value!r}" for key, value in values.items())
        self._add(name, self.get(of), f"{of} with {text}")
        self.variants[name] = Variant(of, values)

    def _add(self, name: str, thing: Any, about: str) -> None:
        self._read_tree()
        if not isinstance(name, str):
            raise UserError(f"a {self.kind} needs a name: @register_{self.kind}('my_idea')")
        module = getattr(thing, "__module__", "?")
        if name in self.entries or self._modules.get(name, module) != module:
            raise UserError(
                f"{self.kind} {name!r} from {_source or module} is already registered by "
                f"{self.origins[name]}; give it another name"
            )
        if wrong := self._unfit(name, thing):
            raise UserError(f"{self.kind} {name!r} from {_source or module}: {wrong}")
        self.entries[name], self.summaries[name] = thing, about
        self.origins[name] = self._modules.get(name) or _source or module

    def _unfit(self, name: str, thing: Any) -> str | None:
        """Why there cannot be such a thing of this kind, or not under this name."""
        pattern = self.kind == "reward" and "*" in name
        if not pattern and not re.fullmatch(r"[A-Za-z][\w.-]*", name, re.ASCII):
            return "a name is a letter, then letters, digits, '_', '-' and '.'"
        if self.kind == "method":
            return _unfit_method_name(name, self.entries) or _unfit_method(thing)
        if self.kind == "reward" and not pattern:
            return _unfit_reward(thing)
        return None if callable(thing) else f"it must be a function, not {thing!r:.50}"

    def get(self, name: str) -> Any:
        """The thing of that name; an unknown name is an error with the nearest known one.

        A name that is not registered may match a pattern: then the pattern's function makes the
        thing from the name, or returns None if it is not its own.
        """
        found = self._find(name)
        if found is None:
            for pattern in self.patterns():
                if fnmatch.fnmatchcase(name, pattern):
                    found = found or self._find(pattern)(name)
        if found is None:
            raise UserError(f"unknown {self.kind} {name!r}; {hint(name, self.names())}")
        return found

    def _find(self, name: str) -> Any:
        """What is registered under exactly this name, or None."""
        self._read_tree()
        if name not in self.entries and name in self._modules:
            self._import(name)
        if name not in self.entries:
            load_entry_points()
        return self.entries.get(name)

    def names(self) -> list[str]:
        """All names, sorted."""
        return [name for name in self._known() if "*" not in name]

    def patterns(self) -> list[str]:
        """All patterns: names with a ``*`` stand for every name that they match."""
        return [name for name in self._known() if "*" in name]

    def _known(self) -> list[str]:
        self._read_tree()
        load_entry_points()
        return sorted({*self.entries, *self._modules})

    def _import(self, name: str) -> None:
        try:
            importlib.import_module(self._modules[name])
        except ImportError as error:
            raise UserError(
                f"{self.kind} {name!r}: {self._modules[name]} cannot be imported ({error})"
            ) from error

    @functools.cache  # noqa: B019 - registries live as long as the process
    def _read_tree(self) -> None:
        for path in sorted(self.folder.glob("[!_]*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for name, about in _declared(path, self.kind):
                self._modules[name] = self.origins[name] = module
                self.summaries[name] = about
        for path in sorted(self.folder.glob("*.toml")):
            self.entries[path.stem] = path
            self.origins[path.stem] = path.relative_to(ROOT).as_posix()
            self.summaries[path.stem] = first_sentence(_comment(path))


def _unfit_method_name(name: str, known: Iterable[str]) -> str | None:
    """Why a method cannot be called so: its name begins options, and is a field of a form."""
    field = name.replace("-", "_")
    if "." in name or keyword.iskeyword(field) or field == "options":
        return "a method's name may not have a '.' and not be a word of Python, nor 'options'"
    same = [other for other in known if other.replace("-", "_") == field]
    return f"its options would be those of {same[0]!r}" if same else None


def _unfit_method(thing: Any) -> str | None:
    """What a class lacks of a method."""
    if missing := _abstract(thing, Method):
        return missing
    config = getattr(thing, "Config", None)
    if not isinstance(config, type) or not dataclasses.is_dataclass(config):
        return "its Config must be a dataclass: the method's options, inheriting Batch or Sampling"
    bare = [
        f.name
        for f in dataclasses.fields(config)
        if f.default is dataclasses.MISSING is f.default_factory
    ]
    if bare:
        return f"every field of its Config needs a default; {', '.join(bare)} has none"
    if getattr(thing, "needs", None) not in ({"reward"}, {"reward_grad"}):
        return "its needs must be frozenset({'reward'}) or frozenset({'reward_grad'})"
    return None


def _unfit_reward(thing: Any) -> str | None:
    """What a class lacks of a reward."""
    if missing := _abstract(thing, Reward):
        return missing
    said = [name for name in ("unit", "reference", "differentiable") if not hasattr(thing, name)]
    return f"it must say its {', '.join(said)}" if said else None


def _abstract(thing: Any, base: type) -> str | None:
    """Why a thing is no class that derives from ``base`` and defines all that it must."""
    if not isinstance(thing, type) or not issubclass(thing, base):
        return f"it must be a class that derives from {base.__name__}, not {thing!r:.60}"
    undefined = ", ".join(sorted(getattr(thing, "__abstractmethods__", ())))
    return f"it does not define {undefined}" if undefined else None


def _comment(path: Path) -> str:
    """The comment at the top of a TOML file."""
    lines = path.read_text("utf-8").splitlines()
    top = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.removeprefix("#") for line in top)


def _declared(path: Path, kind: str) -> Iterator[tuple[str, str]]:
    """Names of a kind that a Python file registers at its top level, each with a sentence."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except SyntaxError as error:
        broken[str(path.relative_to(ROOT))] = f"SyntaxError: {error}"
        return
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            about = first_sentence(ast.get_docstring(node) or "")
            for decorator in node.decorator_list:
                match decorator:
                    case ast.Call(func=ast.Name(id=called), args=[ast.Constant(value=str(name))]):
                        if called == f"register_{kind}":
                            yield name, about
        match node:
            case ast.Expr(
                ast.Call(
                    func=ast.Name(id=called),
                    args=[ast.Constant(value=str(name)), ast.Constant(value=str(of))],
                    keywords=values,
                )
            ) if called == f"{kind}_variant":
                yield name, f"{of} with {', '.join(map(ast.unparse, values))}"


methods = Registry("method", "methods")
selections = Registry("selection", "methods")
rewards = Registry("reward", "rewards")
backbones = Registry("backbone", "benchmarks/presets")
tasks = Registry("task", "benchmarks/tasks")
suites = Registry("suite", "benchmarks/experiments/suites")
#: All of them, as ``--list`` names them.
KINDS = {r.kind + "s": r for r in (methods, selections, rewards, backbones, tasks, suites)}


def register_method(name: str) -> Callable[[type[Method]], type[Method]]:
    """Decorator: make a ``Method`` known as ``name``."""
    return methods.register(name)


def method_variant(name: str, of: str, **values: Any) -> None:
    """Make a registered method with ``values`` over its configuration known as ``name``."""
    methods.variant(name, of, **values)


def register_selection(name: str) -> Callable[[type[Selection]], type[Selection]]:
    """Decorator: make a ``Selection`` known as ``name``."""
    return selections.register(name)


def register_reward(name: str) -> Callable[[Thing], Thing]:
    """Decorator: make a ``Reward`` known as ``name``.

    A name with a ``*`` is a pattern: of a function that takes a name which matches, such as
    ``2*jpeg+alignment``, and returns a ``Reward``, or None if that name is not its own.
    """
    return rewards.register(name)


def register_backbone(
    name: str,
) -> Callable[[Callable[[], Preset | Path]], Callable[[], Preset | Path]]:
    """Decorator: a function that returns a ``Preset``, or the path of its TOML file."""
    return backbones.register(name)


def register_task(name: str) -> Callable[[Callable[[], Task | Path]], Callable[[], Task | Path]]:
    """Decorator: a function that returns a ``Task``, or the path of its TOML file."""
    return tasks.register(name)


def register_suite(name: str) -> Callable[[Callable[[], Path]], Callable[[], Path]]:
    """Decorator: a function that returns the path of a suite's TOML file."""
    return suites.register(name)


@contextmanager
def _registering_from(source: str) -> Iterator[None]:
    global _source
    before = _source
    _source = source
    try:
        yield
    finally:
        _source = before


@functools.cache
def load_entry_points() -> None:
    """Import the plugins of installed packages, once; a broken one is noted."""
    for point in entry_points(group=GROUP):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "an entry point"
        try:
            with _registering_from(package):
                point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - it may fail in any way
            broken[f"{package} ({point.value})"] = f"{type(error).__name__}: {error}"


def load_plugin(path: Path) -> None:
    """Run a Python file that registers things. It is code: it can do anything."""
    spec = importlib.util.spec_from_file_location(f"plugin_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    try:
        with _registering_from(str(path)):
            spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"--plugin {path}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"--plugin {path}: {type(error).__name__}: {error}") from error
