"""Grids of pictures from the same noise: before and after, by method, along training, along a soup.

Which pictures are shown is a rule and not a choice: the first picture of each of the first prompts,
from the lowest seed that has pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from analysis.collect import Cell, Comparison, Evaluated
from analysis.records import SPLITS
from analysis.style import BASE

COLUMNS = {"train": 8, "unseen": 6, "prompts": 8}
TILE = 160  # pixels: small pictures are enlarged at least to this, large ones reduced to at most
LARGEST = 256
GAP, MARGIN, LINE = 8, 24, 26
INK, FAINT = "#1a1a1a", "#6b6b6b"
NOTE = "Same noise in each column; first prompts, not selected."


@dataclass(frozen=True)
class Row:
    """One row of a grid: where its pictures are, and what is recorded of each."""

    name: str
    folder: Path
    records: Sequence[Mapping[str, Any]]

    def at(self, index: int) -> Path:
        """The file of one picture."""
        return self.folder / f"{index:03d}.png"

    def score(self, index: int, reward: str) -> float | None:
        """The recorded reward of one picture."""
        record = self.records[index] if index < len(self.records) else {}
        value = record.get("rewards", {}).get(reward)
        return None if value is None else float(value)


@dataclass(frozen=True)
class Block:
    """The rows of one split: prompts, rows, and the pictures that every row has."""

    title: str
    rows: Sequence[Row]
    chosen: Mapping[str, int]  # prompt -> index of its picture


def block(title: str, split: str, rows: Sequence[Row]) -> Block | None:
    """The first picture of each of the first prompts that are there in every row; None if none."""
    chosen: dict[str, int] = {}
    for index, record in enumerate(rows[0].records if rows else ()):
        prompt = str(record["prompt"])
        if prompt not in chosen and all(row.at(index).is_file() for row in rows):
            chosen[prompt] = index
    first = dict(list(chosen.items())[: COLUMNS[split]])
    return Block(title, rows, first) if first and len(rows) > 1 else None


def steps(comparison: Comparison, cell: Cell, split: str) -> dict[int, Row]:
    """The optimizer steps with pictures of one cell, in order."""
    evals = comparison.evals
    rows = evals[(evals["cell"] == cell.path.name) & (evals["split"] == split)]
    records = dict(zip(rows["step"], rows["per_image"], strict=True))
    folders = sorted((cell.path / "images" / split).glob("*"))
    found = {int(f.name): f for f in folders if f.name.isdigit() and int(f.name) in records}
    return {step: Row(f"step {step}", folder, records[step]) for step, folder in found.items()}


def shown(comparison: Comparison, label: str) -> Cell | None:
    """The cell whose pictures stand for a method: the lowest seed that has any."""
    cells = [cell for cell in comparison.cells if cell.label == label]
    for cell in sorted(cells, key=lambda cell: (int(cell.info["seed"]), cell.path.name)):
        if any(len(steps(comparison, cell, split)) > 1 for split in SPLITS):
            return cell
    return None


def before_after(comparison: Comparison, label: str) -> Image.Image | None:
    """The base model and the last checkpoint of one method; None without pictures."""
    return _progress(comparison, label, ends=True)


def along_training(comparison: Comparison, label: str) -> Image.Image | None:
    """Every evaluation of one method that has pictures; None if only the ends have."""
    return _progress(comparison, label, ends=False)


def _progress(comparison: Comparison, label: str, ends: bool) -> Image.Image | None:
    cell = shown(comparison, label)
    if cell is None:
        return None
    blocks, there = [], {split: steps(comparison, cell, split) for split in SPLITS}
    for split, name in SPLITS.items():
        rows = list(there[split].values())
        if ends and len(rows) > 1:
            rows = [Row("before", rows[0].folder, rows[0].records),
                    Row("after", rows[-1].folder, rows[-1].records)]  # fmt: skip
        elif len(rows) < 3:
            continue
        blocks.append(block(f"{name} prompts", split, rows))
    last = max(max(found, default=0) for found in there.values())
    title = f"{label}: {comparison.reward}, seed {cell.info['seed']}, optimizer step {last}"
    return _drawn(blocks, title, comparison.reward, comparison.units)


def methods(comparison: Comparison) -> Image.Image | None:
    """Rows: the base model and the last checkpoint of every method."""
    cells = {label: cell for label in comparison.labels if (cell := shown(comparison, label))}
    blocks = []
    for split, name in SPLITS.items():
        rows: list[Row] = []
        for label, cell in cells.items():
            found = list(steps(comparison, cell, split).values())
            if len(found) > 1:
                if not rows:
                    rows.append(Row(BASE, found[0].folder, found[0].records))
                text = f"{label}, seed {cell.info['seed']}"
                rows.append(Row(text, found[-1].folder, found[-1].records))
        blocks.append(block(f"{name} prompts", split, rows))
    title = f"{comparison.title}, last checkpoints"
    return _drawn(blocks, title, comparison.reward, comparison.units)


def along_soup(evaluated: Evaluated) -> Image.Image | None:
    """Rows: the base model and every candidate of an ``evaluate``."""
    blocks = []
    for split in dict.fromkeys(row["split"] for row in evaluated.rows):
        rows = []
        for record in evaluated.rows:
            if record["split"] == split:
                folder = evaluated.path / "images" / split / f"{record['candidate']:06d}"
                name = str(record["name"])
                rows.append(Row(name if len(name) < 40 else Path(name).name, folder,
                                record["per_image"]))  # fmt: skip
        blocks.append(block(f"{SPLITS.get(split, 'given')} prompts", split, rows))
    kind = {"sweep": "coefficient", "parts": "part of the chain"}.get(evaluated.info["kind"], "")
    title = f"{evaluated.title}, by {kind or 'checkpoint'}"
    return _drawn(blocks, title, evaluated.info["reward"], evaluated.info["units"])


def _open(path: Path) -> Image.Image | None:
    """The picture at display size: enlarged by a whole factor so that every pixel stays square."""
    try:
        picture = Image.open(path).convert("RGB")
    except OSError:  # missing, or cut short by a crash
        return None
    side = max(picture.size)
    if side > LARGEST:
        ratio = LARGEST / side
        size = (round(picture.width * ratio), round(picture.height * ratio))
        return picture.resize(size, Image.Resampling.LANCZOS)
    factor = max(1, -(-TILE // side))
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)


def _font(size: int, name: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int = 3) -> list[str]:
    """``text`` in at most ``lines`` lines of ``width`` pixels; what does not fit becomes …"""
    wrapped = [""]
    for word in text.split():
        longer = f"{wrapped[-1]} {word}".strip()
        if font.getlength(longer) <= width or not wrapped[-1]:
            wrapped[-1] = longer
        else:
            wrapped.append(word)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], f"{wrapped[lines - 1]}…"]
    for number, line in enumerate(wrapped):
        while font.getlength(line) > width:
            line = line.rstrip("…")[:-1] + "…"
        wrapped[number] = line
    return wrapped


def _drawn(
    blocks: Sequence[Block | None], title: str, reward: str, units: Mapping[str, str]
) -> Image.Image | None:
    """Title, then per block: its name, the prompts, and each row with its rewards."""
    there = [b for b in blocks if b]
    if not there:
        return None
    text, small, bold = _font(19), _font(16), _font(23, "DejaVuSans-Bold")
    opened = {row.at(i): _open(row.at(i)) for b in there for row in b.rows
              for i in b.chosen.values()}  # fmt: skip
    sizes = [picture.size for picture in opened.values() if picture]
    tile_w, tile_h = (max((size[k] for size in sizes), default=TILE) for k in (0, 1))
    left = 16 + max(int(text.getlength(row.name)) for b in there for row in b.rows)
    prompts = [[_wrap(prompt, text, tile_w) for prompt in b.chosen] for b in there]
    depths = [max(map(len, wrapped)) for wrapped in prompts]
    step = tile_h + LINE + GAP
    width = 2 * MARGIN + left + max(len(b.chosen) for b in there) * (tile_w + GAP) - GAP
    unit = units.get(reward)
    notes = f"{NOTE} Numbers: {reward} ({unit})." if unit else f"{NOTE} Numbers: {reward}."
    heads = [(line, bold, INK) for line in _wrap(title, bold, width - 2 * MARGIN)]
    heads += [(line, small, FAINT) for line in _wrap(notes, small, width - 2 * MARGIN)]
    height = 2 * MARGIN + len(heads) * (LINE + 6)
    height += sum((2 + depth) * LINE + len(b.rows) * step
                  for b, depth in zip(there, depths, strict=True))  # fmt: skip
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    y = MARGIN
    for line, font, ink in heads:
        draw.text((MARGIN, y), line, ink, font)
        y += LINE + 6
    for b, wrapped, depth in zip(there, prompts, depths, strict=True):
        y += LINE // 2
        draw.text((MARGIN, y), b.title, FAINT, text)
        y += LINE + LINE // 2 + depth * LINE
        columns = [MARGIN + left + number * (tile_w + GAP) for number in range(len(b.chosen))]
        for x, lines in zip(columns, wrapped, strict=True):
            for offset, line in enumerate(lines):
                at = (x + tile_w // 2, y - 6 - LINE * (len(lines) - offset))
                draw.text(at, line, INK, text, anchor="ma")
        for row in b.rows:
            draw.text((MARGIN, y + tile_h // 2), row.name, INK, text, anchor="lm")
            for x, index in zip(columns, b.chosen.values(), strict=True):
                picture, value = opened[row.at(index)], row.score(index, reward)
                if picture:
                    canvas.paste(picture, (x + (tile_w - picture.width) // 2, y))
                if value is not None:
                    at = (x + tile_w // 2, y + tile_h + 3)
                    draw.text(at, f"{value:.2f}", FAINT, small, anchor="ma")
            y += step
    return canvas
