"""What a result depends on and no name says: code that was named, and weights, as digests.

They are part of a cell's identity, so that changed code or weights make another cell. This
checkout's own methods and rewards are not: they change with the version of ``RULES.md``. Nor are
the embedded weights as they were when the first cells were recorded.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OURS = {"benchmarks", "methods", "rewards"}
EMBEDDED = ROOT / "benchmarks" / "emoji" / "weights"
#: Digests that cells were recorded without: the embedded model, clip, counter and judge.
BEFORE = {"153579b60b81c383", "f8c5f500de5e9a8c", "15b51774a55d2419", "5d4b3a4143ce471f"}
#: Bytes. Files beyond are sampled: as many blocks, evenly spaced.
LARGE, BLOCK, BLOCKS = 64_000_000, 4096, 1024
#: Stands for code without a file: it is never taken for that of another process.
TYPED_IN = f"typed in, process {os.getpid()} at {time.time_ns()}"


def code(cls: Any) -> str:
    """The digest of the files that define a class and its foreign bases; empty for our own."""
    files: set[Path] = set()
    while isinstance(cls, functools.partial):
        cls = cls.func
    for base in cls.__mro__ if isinstance(cls, type) else (cls,):
        module = base.__module__
        top = module.partition(".")[0]
        if top in sys.stdlib_module_names - {"__main__"} or top in OURS | {"torch"}:
            continue
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None:
            return TYPED_IN
        files.add(Path(file).resolve())
    return _short(python_file(file) for file in sorted(files)) if files else ""


def python_file(path: Path) -> str:
    """The digest of a Python file and of what it imports from its own folder. It is not run."""
    found: dict[Path, bytes] = {}
    waiting = [path.resolve()]
    while waiting:
        file = waiting.pop()
        if file not in found and file.is_file():
            found[file] = file.read_bytes()
            waiting += _imported(file, found[file], path.resolve().parent)
    parts = sorted((str(f.relative_to(path.resolve().parent)), found[f]) for f in found)
    return _short(f"{name} {hashlib.sha256(text).hexdigest()}" for name, text in parts)


def _imported(file: Path, text: bytes, top: Path) -> Iterator[Path]:
    """The files below ``top`` that a file may import."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        names: list[str] = []
        start = top
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = file.parents[node.level - 1] if node.level else top
            inner = [f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names]
            names = [*([node.module] if node.module else []), *inner]
        for name in names:
            place = start.joinpath(*name.split("."))
            for found in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
                if found.is_relative_to(top) and found.is_file():
                    yield found


def model_folder(folder: Path) -> str:
    """The digest of a diffusers folder: of its index and the parts that this names."""
    index = folder / "model_index.json"
    try:
        parts = [key for key, value in json.loads(index.read_text("utf-8")).items() if _part(value)]
    except (OSError, ValueError, AttributeError):
        parts = ["."]
    inside = (path for part in parts for path in (folder / part).rglob("*"))
    return files([index, *inside], folder)


def _part(value: Any) -> bool:
    return isinstance(value, list) and any(value)


def files(paths: Iterable[Path], folder: Path) -> str:
    """The digest of files by their names in ``folder``; empty for what was recorded without."""
    there = sorted({path for path in paths if path.is_file()})
    lines = (f"{path.relative_to(folder).as_posix()} {_file(path)}" for path in there)
    found = _short(lines)
    return "" if found in BEFORE else found


def _file(path: Path) -> str:
    state = path.stat()
    return _digest(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, size: int, changed: int) -> str:
    """Read again when the size or the time has changed."""
    digest = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as file:
        if size <= LARGE:
            digest.update(file.read())
        else:
            digest.update(file.read(BLOCK * BLOCKS))
            for i in range(BLOCKS):
                file.seek(i * (size - BLOCK) // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _short(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
