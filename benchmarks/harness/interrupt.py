"""Ctrl-C and SIGTERM end a run even where a library swallows the KeyboardInterrupt.

Some catch everything while they load a file, and report a damaged file instead. Believing that
error would mark the cell as failed.
"""

from __future__ import annotations

import signal
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked = False


def listen() -> None:
    """From now on both raise KeyboardInterrupt, and ``check`` remembers."""
    for number in SIGNALS:
        signal.signal(number, _ask)


def _ask(number: int, frame: Any) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt


def check() -> None:
    """Raises KeyboardInterrupt if there was a signal."""
    if _asked:
        raise KeyboardInterrupt
