"""A progress bar per cell on a terminal, a line every tenth of the budget elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from benchmarks.distributed import process


@contextmanager
def bar(name: str) -> Iterator[Callable[[float, str], None]]:
    """Yields ``update(share of the budget used, what to say)``; one process of several shows it."""
    if process() > 0:
        yield lambda share, text: None
        return
    console = Console()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(name, total=1.0)
            yield lambda share, text: progress.update(
                task, completed=share, description=f"{name}: {text}"
            )
        return
    start = time.monotonic()
    printed = 0

    def update(share: float, text: str) -> None:
        nonlocal printed
        if int(share * 10) > printed:
            printed = int(share * 10)
            elapsed = time.monotonic() - start
            left = elapsed / share - elapsed
            print(f"{name}: {text}, {share:.0%} of the budget, {left:.0f} s left", flush=True)

    print(f"{name}: starting", flush=True)
    yield update
