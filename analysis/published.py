"""Published numbers (``results/published.toml``), each with its source and how sure we are."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from analysis.collect import Comparison
from analysis.records import ReportError
from analysis.sheets import Sheet

FILE = Path(__file__).parent.parent / "results" / "published.toml"


@lru_cache(maxsize=1)
def values() -> list[dict[str, Any]]:
    """All entries, with the file's defaults filled in."""
    content = tomllib.loads(FILE.read_text("utf-8"))
    return [content["defaults"] | value for value in content["value"]]


def beside(comparison: Comparison) -> dict[str, str]:
    """Published final rewards by method: same backbone, task and reward. Often there are none."""
    ours = {"backbone": comparison.backbone, "task": comparison.task, "reward": comparison.reward}
    found: dict[str, str] = {}
    for value in values():
        if "split" in value and all(value.get(key) == ours[key] for key in ours):
            text = f"{value['value']:g} {value['split']} ({value['certainty']})"
            before = found.get(value["method"])
            found[value["method"]] = f"{before}; {text}" if before else text
    return found


def said(quantities: Sequence[str]) -> str:
    """The published values of these quantities, each with its method, source and certainty.

    Raises ReportError for a quantity of which there is none.
    """
    known = {value["quantity"] for value in values()}
    for quantity in quantities:
        if quantity not in known:
            raise ReportError(f"{FILE.name}: no quantity {quantity!r}")
    found: dict[tuple[str, str, str], list[str]] = {}  # several methods' values of one quantity
    for v in values():
        if v["quantity"] in quantities:
            trust = ", ".join(filter(None, (v.get("where"), v["certainty"])))
            same = found.setdefault((v["quantity"], v["unit"], trust), [])
            same.append(f"{v['method']} {v['value']:,g}")
    return "; ".join(
        f"{quantity}: {', '.join(same)} {unit} ({trust})"
        for (quantity, unit, trust), same in found.items()
    )


def sheet() -> Sheet:
    """All of them, as they were published."""
    rows = [
        {
            "method": value["method"],
            "quantity": value["quantity"],
            "value": f"{value['value']:,g}",
            "unit": value["unit"],
            "certainty": value["certainty"],
            "source": ", ".join(filter(None, (value["source"], value.get("where")))),
        }
        for value in values()
    ]
    note = (
        "Not measured by us. source: read in the primary source; figure: read off its figure by "
        "eye; quoted: by a third party; weak: one summary note, not to be relied on."
    )
    return Sheet(title="Published values", note=note, columns=list(rows[0]), rows=rows)
