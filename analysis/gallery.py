"""Pictures of the base model and of the fine-tuned one, from the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from analysis.collect import Cell, Comparison
from analysis.tables import SPLITS

COLUMNS = {"train": 8, "unseen": 6}
TILE = 160  # pixels: small pictures are enlarged at least to this, large ones reduced to at most
LARGEST = 256
GAP, MARGIN, LEFT, LINE = 8, 24, 96, 26
INK, FAINT = "#1a1a1a", "#6b6b6b"


@dataclass(frozen=True)
class Pair:
    """One column: a prompt, the two pictures and their rewards."""

    prompt: str
    before: Image.Image
    after: Image.Image
    rewards: tuple[float | None, float | None]


def gallery(comparison: Comparison, label: str) -> Image.Image | None:
    """The grid of the lowest seed of ``label`` that has pictures; None when no seed has."""
    cells = [cell for cell in comparison.cells if cell.label == label]
    for cell in sorted(cells, key=lambda cell: (int(cell.info["seed"]), cell.path.name)):
        blocks = {split: pairs for split in SPLITS if (pairs := _pairs(comparison, cell, split))}
        if blocks:
            return _draw(comparison, cell, blocks)
    return None


def last_step(folder: Path) -> int:
    """The last optimizer step with pictures in ``images/<split>``; 0 when there is none."""
    return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=0)


def _pairs(comparison: Comparison, cell: Cell, split: str) -> list[Pair]:
    """The first picture of each of the first prompts, in recorded order: a rule, not a choice."""
    folder = cell.path / "images" / split
    last = last_step(folder)
    evals = comparison.evals
    rows = evals[(evals["cell"] == cell.path.name) & (evals["split"] == split)]
    records = {int(row["step"]): row["per_image"] for _, row in rows.iterrows()}
    if last == 0 or 0 not in records:
        return []
    pairs: dict[str, Pair] = {}
    for index, record in enumerate(records[0]):
        prompt = str(record["prompt"])
        if prompt in pairs or len(pairs) == COLUMNS[split]:
            continue
        pictures = [_open(folder / f"{step:06d}" / f"{index:03d}.png") for step in (0, last)]
        later = records.get(last, [])
        tuned = later[index] if index < len(later) else {}
        first, second = (r.get("rewards", {}).get(comparison.reward) for r in (record, tuned))
        if pictures[0] and pictures[1]:
            pairs[prompt] = Pair(prompt, pictures[0], pictures[1], (first, second))
    return list(pairs.values())


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


def _draw(comparison: Comparison, cell: Cell, blocks: dict[str, list[Pair]]) -> Image.Image:
    """Title, then per split: its name, the prompts, a row before and a row after."""
    text, small, bold = _font(19), _font(16), _font(23, "DejaVuSans-Bold")
    pairs = [pair for block in blocks.values() for pair in block]
    tile_w = max(pair.before.width for pair in pairs)
    tile_h = max(pair.before.height for pair in pairs)
    prompts = {k: [_wrap(p.prompt, text, tile_w) for p in ps] for k, ps in blocks.items()}
    depth = {split: max(map(len, wrapped)) for split, wrapped in prompts.items()}
    row = tile_h + LINE + GAP
    width = 2 * MARGIN + LEFT + max(map(len, blocks.values())) * (tile_w + GAP) - GAP
    step = last_step(cell.path / "images" / next(iter(blocks)))
    fact = f"{comparison.reward}, seed {cell.info['seed']}, optimizer step {step}"
    unit = comparison.units.get(comparison.reward)
    score = f"{comparison.reward} ({unit})" if unit else comparison.reward
    notes = f"Same noise before and after; first prompts, not selected. Numbers: {score}."
    heads = [(line, bold, INK) for line in _wrap(f"{cell.label}: {fact}", bold, width - 2 * MARGIN)]
    heads += [(line, small, FAINT) for line in _wrap(notes, small, width - 2 * MARGIN)]
    height = 2 * MARGIN + len(heads) * (LINE + 6)
    height += sum(2 * LINE + depth[split] * LINE + 2 * row for split in blocks)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    y = MARGIN
    for line, font, ink in heads:
        draw.text((MARGIN, y), line, ink, font)
        y += LINE + 6
    for split, block in blocks.items():
        y += LINE // 2
        draw.text((MARGIN, y), f"{SPLITS[split]} {comparison.task}", FAINT, text)
        y += LINE + LINE // 2 + depth[split] * LINE
        for number, (pair, lines) in enumerate(zip(block, prompts[split], strict=True)):
            x = MARGIN + LEFT + number * (tile_w + GAP)
            top, middle = y - 6 - LINE * len(lines), x + tile_w // 2
            for offset, line in enumerate(lines):
                draw.text((middle, top + offset * LINE), line, INK, text, anchor="ma")
            for at, picture, value in zip((y, y + row), (pair.before, pair.after), pair.rewards,
                                          strict=True):  # fmt: skip
                canvas.paste(picture, (x + (tile_w - picture.width) // 2, at))
                if value is not None:
                    draw.text((middle, at + tile_h + 3), f"{value:.2f}", FAINT, small, anchor="ma")
        for at, word in ((y, "before"), (y + row, "after")):
            draw.text((MARGIN, at + tile_h // 2), word, INK, text, anchor="lm")
        y += 2 * row
    return canvas
