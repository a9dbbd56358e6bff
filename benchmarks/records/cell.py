"""Run directories: append-only JSON lines, PNG pictures, safetensors weights and checkpoints."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image
from torch import Tensor

from benchmarks.api import UserError
from benchmarks.distributed import from_first, process
from benchmarks.records import checkpoint, tracking
from benchmarks.records.state import DAMAGED, begun

RECORDS = ("steps", "evals")
Write = TypeVar("Write", bound=Callable[..., None])


def by_first(write: Write) -> Write:
    """Of the processes of one run, only the first writes."""

    @functools.wraps(write)
    def call(*args: Any, **options: Any) -> None:
        if process() == 0:
            write(*args, **options)

    return call  # type: ignore[return-value]


class Cell:
    """The directory of one method x task x seed x config, named by a hash of its description.

    ``facts`` are written beside it and are no part of the hash. ``track`` names a tracker that
    gets all records and pictures too.
    """

    def __init__(
        self,
        out: Path,
        description: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
        track: tracking.Name | None = None,
    ) -> None:
        self.description, self.facts, self.track = description, facts or {}, track
        text = json.dumps(description, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        # A reward may be named by an expression or a file.
        names = [re.sub(r"[^\w.+-]", "_", str(description[k])) for k in ("method", "reward")]
        self.path = out / f"{'-'.join(names)}-seed{description['seed']}-{digest}"
        self.step: int | None = None  # the optimizer step in progress
        self._lock: IO[str] | None = None
        self._tracker: tracking.Tracker | None = None

    @property
    def done(self) -> bool:
        """Whether the cell has finished. Only certain while the cell is ``claimed``."""
        return from_first((self.path / "done").exists)

    @property
    def failed(self) -> bool:
        """Whether the cell failed when it was last run."""
        return from_first((self.path / "failed.json").exists)

    @by_first
    def announce(self) -> None:
        """Write the cell's file unless it has begun; who runs it then finds all it needs there.

        Raises UserError for a link in the cell's directory.
        """
        refuse_links(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        if not begun(self.path):
            write_json(self.path / "cell.json", {**self.description, **self.facts})

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other runs off this cell; raises UserError if one has it, or for a link in it."""
        from_first(self._claim)
        try:
            yield
        finally:
            if self._tracker is not None:
                self._tracker.close()
            if self._lock is not None:
                self._lock.close()

    def _claim(self) -> None:
        refuse_links(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        if (self.path / "lock").is_dir():
            raise UserError(f"{self.path / 'lock'} is a folder; remove it")
        self._lock = (self.path / "lock").open("a")
        for attempt in range(5):  # ``status`` holds the lock for a moment
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05 * attempt)
            except OSError as error:  # ENOSYS, ENOLCK: some file systems of clusters
                _say_once(
                    f"{self.path.parent}: its file system has no locks ({error.strerror}), so take "
                    "care yourself that no cell is run twice at once"
                )
                return None
        self._lock.close()
        raise UserError(f"{self.path} is being run by another process")

    def begin(self) -> dict[str, Any] | None:
        """The newest readable checkpoint's state, with the records brought back to its time.

        Without one, everything an unfinished run left is cleared and the description written.
        """
        state = from_first(self._begin)
        if self.track and process() == 0:
            self._tracker = tracking.Tracker(self.track, self.path, self.description)
        return state

    def _begin(self) -> dict[str, Any] | None:
        for stale in self.path.glob("*.tmp"):
            stale.unlink()
        for path in reversed(self._checkpoints()):
            try:
                state: dict[str, Any] = checkpoint.load(path)
                lost = any(size > self._size(name) for name, size in state["records"].items())
            except (checkpoint.Unreadable, *DAMAGED):
                lost = True
            if lost:  # it, or records that it had counted on
                path.unlink()
                continue
            for name, size in state["records"].items():
                with (self.path / f"{name}.jsonl").open("a") as file:
                    file.truncate(size)
            (self.path / "failed.json").unlink(missing_ok=True)
            return state
        write_json(self.path / "cell.json", {**self.description, **self.facts})
        for child in self.path.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            elif child.name not in ("cell.json", "lock"):
                child.unlink()
        return None

    @by_first
    def checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Save ``state`` so that ``begin`` can go on from here; the last two are kept."""
        sizes = {name: self._size(name) for name in RECORDS}
        checkpoint.save(
            self.path / f"checkpoint-{step:08d}.safetensors", state | {"records": sizes}
        )
        for old in self._checkpoints()[:-2]:
            old.unlink()

    def _size(self, name: str) -> int:
        file = self.path / f"{name}.jsonl"
        return file.stat().st_size if file.exists() else 0

    def _checkpoints(self) -> list[Path]:
        return sorted(self.path.glob("checkpoint-*.safetensors"))

    @by_first
    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add a line to ``name``.jsonl."""
        with (self.path / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._tracker is not None:
            self._tracker.record(name, record)

    @by_first
    def save_images(self, split: str, step: int, images: Tensor) -> None:
        """Write (B, 3, H, W) in [0, 1] as numbered PNG files."""
        save_pictures(self.path / "images" / split / f"{step:06d}", images)
        if self._tracker is not None:
            self._tracker.pictures(split, step, images)

    def finish(self) -> None:
        """Mark the cell as done, for all processes; its checkpoints are no longer needed."""
        from_first(self._finish)

    def _finish(self) -> None:
        (self.path / "done").touch()
        for path in self._checkpoints():
            path.unlink()

    def fail(self, error: BaseException) -> None:
        """Leave a record of why the cell failed."""
        record = {
            "type": type(error).__name__,
            "error": str(error) or type(error).__name__,
            "step": self.step,
            "traceback": "".join(traceback.format_exception(error)),
        }
        with suppress(OSError):  # a full disk may be why
            write_json(self.path / "failed.json", record)


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def refuse_links(folder: Path) -> None:
    """Raises UserError if a folder that is to be written is a link, or one in it leads outside.

    So nothing outside of the directory of runs is ever written or removed.
    """
    top = folder.parent.resolve() / folder.name
    for place, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            path = Path(place) / name
            if path.is_symlink() and not (path.resolve().is_relative_to(top) and path.exists()):
                raise UserError(f"{path} is a link; remove it: only files within --out are written")


def write_json(path: Path, value: Any) -> None:
    """Write atomically."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with temporary.open("x", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1, default=str) + "\n")
    temporary.replace(path)


def save_pictures(folder: Path, images: Tensor) -> None:
    """Write (B, 3, H, W) in [0, 1] as numbered PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(images):
        to_pil(picture).save(folder / f"{i:03d}.png")


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] to an 8-bit picture, rounding like diffusers' image processor."""
    array = (image.permute(1, 2, 0).cpu().float() * 255).round().byte().numpy()
    return Image.fromarray(array)
