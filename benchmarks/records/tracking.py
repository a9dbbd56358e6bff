"""``--track tensorboard``: what a run records also goes to one of accelerate's trackers.

The files of a cell stay the truth. A tracker is no part of a cell's identity, and one that fails is
reported once and then left alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.api import UserError
from benchmarks.distributed import start

if TYPE_CHECKING:
    from torch import Tensor

Name = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "alignprop-bench"
#: Weights & Biases drops what is logged at an earlier step than its newest, and evaluations look
#: back. So its own steps only count lines, and this is the axis of all its charts.
STEP = "optimizer_step"


def require(name: Name) -> None:
    """Raises UserError if the tracker's package is not installed."""
    from accelerate.tracking import get_available_trackers

    if name not in map(str, get_available_trackers()):
        raise UserError(f"--track {name}: it is not installed; pip install {name}")


class Tracker:
    """One cell as a run of a tracker; started again, it goes on with the same run.

    TensorBoard's event files lie in the cell's directory. The others get the project's name, the
    cell's and its description; where they send it is their own affair (``WANDB_MODE=offline``).
    """

    def __init__(self, name: Name, cell: Path, description: Mapping[str, Any]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self.name = name
        self._broken = False

        def begin() -> Any:
            start()  # accelerate's trackers ask which process they are in
            if name == "tensorboard":
                made: Any = LOGGER_TYPE_TO_CLASS[name](cell.name, cell.parent)
            else:
                about = {"name": cell.name, "config": dict(description), "resume": "allow"}
                place = {"id": cell.name, "dir": cell} if name == "wandb" else {}
                made = LOGGER_TYPE_TO_CLASS[name](PROJECT, **about, **place)
            made.start()
            if name == "wandb":
                made.tracker.define_metric("*", step_metric=STEP)
            return made

        self._inner = self._try(begin)

    def record(self, name: str, record: Mapping[str, Any]) -> None:
        """A line of ``steps`` or ``evals``: its numbers over the optimizer steps."""
        from benchmarks.compute.ledger import Ledger

        if "split" in record:  # what the evaluation found; the counters are those of the step
            counters = Ledger().totals().keys() | {"fraction"}
            found = {k: v for k, v in record.items() if k not in counters} | record["rewards"]
            head = record["split"]
        else:
            found = dict(record)
            head = name
        numbers = {
            f"{head}/{key}": float(value)
            for key, value in found.items()
            if key != "step" and isinstance(value, int | float) and math.isfinite(value)
        }
        self._log(numbers, record["step"])

    def _log(self, values: dict[str, Any], step: int) -> None:
        if self.name == "wandb":
            self._try(lambda: self._inner.log(values | {STEP: step}))
        else:
            self._try(lambda: self._inner.log(values, step=step))

    def pictures(self, split: str, step: int, images: Tensor) -> None:
        """(B, 3, H, W) in [0, 1]; trackio gets none, because accelerate's has no way for them."""
        if self.name == "trackio":
            return
        array = (images.permute(0, 2, 3, 1).cpu().float() * 255).round().byte().numpy()
        name = f"{split}/images"
        if self.name == "wandb":
            from wandb import Image

            self._log({name: [Image(picture) for picture in array]}, step)
        else:
            layout = {"dataformats": "NHWC"}
            self._try(lambda: self._inner.log_images({name: array}, step=step, **layout))

    def close(self) -> None:
        """End the tracker's run."""
        self._try(lambda: self._inner.finish())

    def _try(self, call: Callable[[], Any]) -> Any:
        if self._broken:
            return None
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the run goes on
            self._broken = True
            with suppress(Exception):  # so that the next cell can begin a run of its own
                self._inner.finish()
            print(f"--track {self.name}: {error}; the run goes on without", file=sys.stderr)
