"""Everything that is held fixed between methods; ``run`` does from Python what the command does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def run(methods: Sequence[str] = ("alignprop", "ddpo"), **options: Any) -> pd.DataFrame:
    """Compare methods; see ``benchmarks.experiments.cells.run``."""
    from benchmarks.experiments import cells

    return cells.run(methods, **options)
