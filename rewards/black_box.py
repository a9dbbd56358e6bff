"""Any Python function on pictures as a reward: ``my_file.py:score``.

The function takes a list of PIL pictures and a list of prompts and returns a number for each,
higher is better; a picture whose number is not finite counts as an average one. It runs in a
process of its own, so that it can be stopped: it has 60 seconds for each batch, or what
``score.timeout = SECONDS`` in the file says. It has no gradient.
"""

from __future__ import annotations

import ast
import importlib.util
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from rewards import Reward, UserError, content, register_reward, torch
from rewards._check import check, eight_bit

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = 60.0  # seconds for a batch, and for starting
PROCESS = "function reward"  # ``benchmarks.run`` refuses to run in it


class BlackBox(Reward):
    """A function of pictures and prompts, in a process of its own that starts at the first call."""

    unit = "score"
    differentiable = False
    path: ClassVar[Path]
    function: ClassVar[str]

    def __init__(self, device: Any) -> None:
        self.device = torch.device(device)
        self._process: Any = None

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check(images, prompts)
        if self._process is None:
            self._start()
        self._pipe.send((eight_bit(images), list(prompts)))
        scores = self._answer()
        if len(scores) != len(prompts):
            raise UserError(
                f"{self._name}: must return a number for each of {len(prompts)} pictures, not "
                f"{str(scores)[:80]}"
            )
        return torch.tensor(scores, dtype=torch.float32, device=self.device)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, self.path, self.function)
        self._process = context.Process(target=_serve, args=arguments, daemon=True, name=PROCESS)
        with _no_main():
            self._process.start()
        theirs.close()
        self._timeout = TIMEOUT
        self._timeout = self._answer()

    def _answer(self) -> Any:
        """What the other process says. Raises UserError if it fails, dies or takes too long."""
        try:
            if not self._pipe.poll(self._timeout):
                self._process.kill()
                raise UserError(
                    f"{self._name}: no answer within {self._timeout:g} s; to allow more, write "
                    f"{self.function}.timeout = SECONDS in the file"
                )
            value, error = self._pipe.recv()
        except (EOFError, OSError) as gone:
            raise UserError(f"{self._name}: its process ended without an answer") from gone
        if error:
            raise UserError(f"{self._name}: {error}")
        return value

    @property
    def _name(self) -> str:
        return f"reward {self.path.name}:{self.function}"


@contextmanager
def _no_main() -> Iterator[None]:
    """Processes that start within it do not run the main script once more.

    They need nothing of it, and one without ``if __name__ == "__main__"`` would run twice.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve(pipe: Any, path: Path, function: str) -> None:
    """Answer requests until the pipe closes; runs in the other process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    sys.path.insert(0, str(path.parent))
    try:
        spec: Any = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        score = getattr(module, function)
        pipe.send((float(getattr(score, "timeout", TIMEOUT)), ""))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's file may fail in any way
        pipe.send((None, _said(error)))
        return
    while True:
        try:
            pixels, prompts = pipe.recv()
        except EOFError:
            return
        try:
            scores = score([Image.fromarray(picture) for picture in pixels], prompts)
            pipe.send(([float(s) for s in scores], ""))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - it may fail in any way
            pipe.send((None, _said(error)))


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@register_reward("*.py:*")
def black_box(name: str) -> type[BlackBox] | None:
    """my_file.py:score: any function on PIL pictures and prompts, without a gradient."""
    place, _, function = name.rpartition(":")
    if "*" in name or "+" in name:  # a mixture
        return None
    path = Path(place)
    try:
        source = path.read_bytes()
        defined = _names(ast.parse(source))
    except OSError as error:
        raise UserError(f"--reward {name}: {place} cannot be read ({error.strerror})") from error
    except (SyntaxError, ValueError) as error:
        raise UserError(f"--reward {name}: {place} is not valid Python ({error})") from error
    if function not in defined:
        known = ", ".join(sorted(defined)) or "nothing"
        raise UserError(f"--reward {name}: {place} does not define {function!r}, but {known}")
    recorded = f"sha256 {content.python_file(path)}"  # with the neighbours that it imports
    values = {"path": path.resolve(), "function": function, "recorded": recorded}
    return type("BlackBox", (BlackBox,), values | {"reference": f"function {function} of {place}"})


def _names(module: ast.Module) -> set[str]:
    """What a file defines at its top level; the file is not run."""
    names = set()
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names
