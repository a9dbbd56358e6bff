"""The tables and figures of a suite, and the page that goes through its claims.

``run_benchmark.py suite`` leaves ``DIR/*/suite.json``, which says whose cells below ``runs`` are
in which table or figure; what is drawn of them and what the paper claims is in the suite's TOML
files. ``python -m analysis DIR`` writes everything again from the records alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis import claims, coverage, published, reasons, soups
from analysis.collect import Collected, Comparison, Evaluated, begun, collect
from analysis.figures import FIGURES, TABLES, Entry, made_of
from analysis.records import Note, ReportError, read_json, read_toml
from analysis.report import slug, write
from analysis.sheets import Sheet, Value, markdown, printed
from analysis.style import Looks, encoded, looks
from analysis.targets import guarded

ROOT = Path(__file__).parent.parent
FACTS = ("rules", "device", "threads", "python", "precision", "versions")


@dataclass
class Item:
    """A table or figure in one directory of results."""

    name: str
    folder: Path
    entry: Mapping[str, Any]  # of suite.json
    text: Mapping[str, Any]  # its TOML file
    data: claims.Data
    notes: list[Note]
    found: list[list[claims.Finding]]  # of each claim
    figures: list[Path] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """Its arms, in the suite's order."""
        return list(dict.fromkeys(self.entry["cells"].values()))


def suites(root: Path) -> list[Path]:
    """The directories of results in ``root``; empty if it holds no suite."""
    return sorted(path.parent for path in root.glob("*/suite.json"))


def write_suite(root: Path) -> str:
    """Write tables and figures into each directory of results, and ``root/README.md``: the claims.

    Returns that page. Raises ReportError for records and files that cannot be read.
    """
    found = [item for folder in suites(root) for item in _items(folder)]
    for item in found:
        _write_item(item)
    page = "\n".join(_page(root, found))
    write(root / "README.md", page.encode())
    return page


def _index(folder: Path) -> dict[str, Any]:
    """What ``suite.json`` says. Raises ReportError if it is damaged."""
    index = read_json(folder / "suite.json")
    kinds = {"rewards": list, "cells": dict, "evaluations": list}
    try:
        entries = list(index["items"].values())
        right = all(type(entry[key]) is kind for entry in entries for key, kind in kinds.items())
        if right and all("ladder" in entry for entry in entries) and type(index["suite"]) is str:
            return index
    except (KeyError, TypeError, AttributeError):
        pass
    raise ReportError(f"{folder / 'suite.json'} is damaged; the suite's command writes it again")


def _items(folder: Path) -> Iterator[Item]:
    index = _index(folder)
    path = ROOT / index["suite"]
    memory = read_json(folder / "memory.json") if (folder / "memory.json").is_file() else {}
    primary = read_toml(path).get("primary", {})
    for name, entry in index["items"].items():
        text = read_toml(path.with_suffix("") / f"{name}.toml")
        wanted = {**entry["cells"], **dict.fromkeys(entry["evaluations"], "")}
        there = {n: label for n, label in wanted.items() if begun(folder / "runs" / n)}
        runs = collect(folder / "runs", only=there) if there else Collected([], [], [])
        notes = [note for note in runs.notes if note.kind != "missing"]
        notes += [Note("missing", n) for n in wanted if n not in there]
        data = claims.Data(
            rewards=entry["rewards"],
            comparisons=[c for c in runs.comparisons if not c.evals.empty],
            evaluated=[one for one in runs.evaluated if one.rows],
            memory=memory.get(entry["ladder"], {}),
        )
        first = primary if primary.get("item") == name else None
        found = claims.family(text.get("claims", ()), data, first)
        yield Item(name, folder, entry, text, data, notes, found)


def _write_item(item: Item) -> None:
    styles, sheets = looks(sorted(item.labels)), list[Sheet]()
    for comparison in item.data.comparisons:
        end = f"-{slug(comparison.reward)}" if len(item.data.comparisons) > 1 else ""
        for name, picture in _figures(item, comparison, styles):
            _keep(item, f"{name}{end}", picture)
        sheets += _sheets(item, comparison)
    for kind, entry in made_of(FIGURES, "evaluations").items():
        if kind in item.text.get("figures", ()):
            for reward, same in _by_checkpoint(item.data.evaluated, kind).items():
                _keep(item, f"{kind}-{slug(reward)}", encoded(entry.make(*same), "png"))
                sheets.append(soups.sheet(*same))
    if item.data.memory:
        rows = [{"trained": k, "GB": f"{v / 1e9:,.0f}"} for k, v in item.data.memory.items()]
        note = (
            f"{item.entry['ladder']}, one picture, 16 bits, 50 sampling steps with guidance: the "
            "U-Net's activations, all weights, gradients and AdamW; without decoder and reward "
            "activations. Computed from the shapes; nothing is trained."
        )
        sheets.append(Sheet(title="Memory", note=note, columns=list(rows[0]), rows=rows))
    if sheets:
        lines = "".join(f"- {note}\n" for note in item.notes)
        missing = f"\nNot (fully) in these tables:\n\n{lines}" if lines else ""
        text = "\n".join(f"## {markdown(sheet)}" for sheet in sheets)
        content = f"# {item.text['title']}\n\n{text}{missing}"
        write(item.folder / f"{item.name}.md", content.encode())


def _figures(item: Item, comparison: Comparison, styles: Looks) -> Iterator[tuple[str, bytes]]:
    if not (comparison.evals["step"] > 0).any():
        return
    for name in item.text.get("figures", ()):
        if (arms := _arms(item, comparison, FIGURES[name])) is not None:
            figure = FIGURES[name].make(comparison, styles, *arms)
            if figure:
                yield name, encoded(figure, "png")


def _sheets(item: Item, comparison: Comparison) -> Iterator[Sheet]:
    for name in item.text.get("tables", ()):
        if (arms := _arms(item, comparison, TABLES[name])) is not None:
            sheet = TABLES[name].make(comparison, *arms)
            if sheet:
                yield sheet


def _arms(item: Item, comparison: Comparison, entry: Entry) -> Sequence[str] | None:
    """What a figure or table takes besides the comparison; None if it cannot be made of it."""
    if entry.of == "comparison":
        return []
    return _two(item, comparison) if entry.of == "pair" and _both(item, comparison) else None


def _both(item: Item, comparison: Comparison) -> bool:
    """Whether there are evaluations of both of an item's arms."""
    tuned = comparison.evals[comparison.evals["step"] > 0]
    return set(_two(item, comparison)) <= set(tuned["label"])


def _two(item: Item, comparison: Comparison) -> list[str]:
    """An item's first two arms that are no placebos: the fast one and the slow one."""
    placebos = {cell.label for cell in comparison.cells if cell.placebo}
    return [label for label in item.labels if label not in placebos][:2]


def _by_checkpoint(evaluated: Sequence[Evaluated], kind: str) -> dict[str, list[Evaluated]]:
    """The evaluations of one kind, those of several seeds together."""
    found: dict[str, list[Evaluated]] = {}
    for one in evaluated:
        if one.info["kind"] == kind:
            rewards = "-".join(str(c["reward"]) for c in one.info["checkpoints"])
            found.setdefault(rewards, []).append(one)
    return found


def _keep(item: Item, name: str, content: bytes) -> None:
    path = item.folder / f"{item.name}-{name}.png"
    write(path, content)
    item.figures.append(path)


def _page(root: Path, items: Sequence[Item]) -> Iterator[str]:
    yield "# Results, claim by claim\n"
    yield (
        "What the paper says, what we see, and why we think so where they differ. Written by "
        "`python -m analysis` from the records; only the paper's words and the reasons are typed "
        "by hand, in the suite's TOML files.\n"
    )
    yield (
        "- A value with an interval is the interquartile mean over seeds; the interval is meant to "
        "hold the truth 95 times in 100, for other seeds, prompts and pictures (on training "
        "prompts that were all drawn: other seeds and pictures). The mean of all runs stands "
        "beside it, because an interquartile mean hides one run in five that explodes.\n"
        "- A claim *holds* or *fails* where its finding is decided at 5 %; it is *undecided* else. "
        "*p* is corrected (Holm) for all findings of one section. One finding, named beforehand, "
        "is *primary* and stands outside that correction. Queries, FLOPs and seconds are one "
        "finding.\n"
        "- *Learnt*: whether a gain is above that of a placebo, the same method trained on "
        "rewards without meaning; without one it is not known.\n"
        "- Published numbers are as certain as they say: *source*, read in the primary source; "
        "*figure*, read off its figure by eye; *quoted*, by a third party; *weak*, from one "
        "summary note.\n"
    )
    yield from _primary(items)
    for folder in dict.fromkeys(item.folder for item in items):
        yield from _circumstances(folder, [item for item in items if item.folder == folder])
    groups = [[i for i in items if i.name == n] for n in dict.fromkeys(i.name for i in items)]
    yield f"{markdown(_in_short(groups)).strip()}\n"
    for same in groups:
        name = same[0].name
        yield f"## {same[0].text['title']}\n"
        for words in dict.fromkeys(words for item in same for words in _lacks(item)):
            yield f"{words}\n"
        for number, claim in enumerate(same[0].text.get("claims", ())):
            yield from _claim(claim, number, same)
        for item in same:
            for path in item.figures:
                target = path.relative_to(root).as_posix()
                words = path.stem.removeprefix(f"{name}-").replace("_", " ").replace("-", ", ", 1)
                yield f"![{same[0].text['title']}: {words}]({target})\n"
            if (table := item.folder / f"{name}.md").is_file():
                yield f"Tables: [{item.folder.name}]({table.relative_to(root).as_posix()})\n"
    notes = [note for item in items for note in item.notes]
    if notes:
        yield "## Not there yet\n"
        yield "".join(f"- {note}\n" for note in dict.fromkeys(notes))
    yield f"## {markdown(published.sheet())}"
    if sheet := coverage.sheet(root):
        yield f"## {markdown(sheet)}"


def _in_short(groups: Sequence[Sequence[Item]]) -> Sheet:
    """Every claim in one line."""
    rows: list[dict[str, Value]] = []
    for same in groups:
        for number, claim in enumerate(same[0].text.get("claims", ())):
            found = [finding for item in same for finding in item.found[number]]
            said = " ".join(claim["paper"].split())
            title = (
                "" if number else f"[{same[0].text['title']}](#{_anchor(same[0].text['title'])})"
            )
            rows.append({"": title, "the paper": said, "what we see": claims.in_short(found)})
    return Sheet(title="", note="", columns=["", "the paper", "what we see"], rows=rows)


def _anchor(title: str) -> str:
    """The name GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _claim(claim: claims.Claim, number: int, same: Sequence[Item]) -> Iterator[str]:
    yield f"**{number + 1}. The paper:** {claim['paper'].strip()}\n"
    if "published" in claim:
        yield f"Published: {published.said(claim['published'])}.\n"
    rows = [(item.folder.name, finding) for item in same for finding in item.found[number]]
    if not rows:
        yield "No runs yet.\n"
        return
    yield f"We see ({claims.in_short([finding for _, finding in rows])}):\n"
    text = markdown(claims.sheet(rows)).strip()
    yield f"{text}\n"
    if "why" in claim:
        tables = [item.folder / f"{item.name}.md" for item in same]
        shown = [path.read_text("utf-8") for path in tables if path.is_file()]
        shown += [text, published.said(claim.get("published", ()))]
        names = {name for item in same for name in (*item.labels, *item.data.rewards)}
        where = f"{same[0].name}.toml, claim {number + 1}"
        reasons.check(where, claim["why"], "\n".join(shown), names)
        yield f"**Why:** {claim['why'].strip()}\n"


def _lacks(item: Item) -> Iterator[str]:
    """What would be needed to believe a comparison of methods, and is not there."""
    arms = {label for claim in item.text.get("claims", ()) for label in claim.get("arms", ())}
    for comparison in item.data.comparisons:
        there = [label for label in arms if label in comparison.labels]
        if any(comparison.placebo(label) is None for label in there):
            yield "*No placebo* stands beside these runs: what of a gain is learnt is not known."
        if there and not guarded(comparison.evals):
            yield "*No guard* watched these runs: a reward that rose at the pictures' cost counts."


def _primary(items: Sequence[Item]) -> Iterator[str]:
    """The finding that was named beforehand."""
    for item in items:
        for claim, found in zip(item.text.get("claims", ()), item.found, strict=True):
            for one in (finding for finding in found if finding.primary):
                said = " ".join(claim["paper"].split())
                number = one.said or f"{printed(one.value, '.4g')}: {one.verdict}"
                yield f"**Primary:** {said} {one.what}: {number}.\n"


def _circumstances(folder: Path, items: Sequence[Item]) -> Iterator[str]:
    """Command, progress, machine and versions."""
    index = read_json(folder / "suite.json")
    wanted = {name for item in items for name in item.entry["cells"]}
    done = [folder / "runs" / name for name in sorted(wanted)]
    done = [path for path in done if (path / "done").exists()]
    infos = [read_json(path / "cell.json") for path in done]
    facts = [
        f"{fact} {' or '.join(sorted({_plain(info[fact]) for info in infos if fact in info}))}"
        for fact in FACTS
        if any(fact in info for info in infos)
    ]
    commits = {info["git"]["commit"][:10] for info in infos if info.get("git")}
    if commits:
        facts.append(f"commit {' or '.join(sorted(commits))}")
    about = f": {'; '.join(facts)}" if facts else ""
    yield f"`{folder.name}/`: `{index['command']}`, {len(done)} of {len(wanted)} cells{about}.\n"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{k} {v}" for k, v in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def check(roots: Sequence[Path]) -> Path | None:
    """The root of suites if that is what is given; ReportError if mixed with something else."""
    with_suites = [root for root in roots if suites(root)]
    if with_suites and len(roots) > 1:
        raise ReportError(f"{with_suites[0]}: holds suites; give it alone")
    return with_suites[0] if with_suites else None
