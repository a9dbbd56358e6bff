"""The emoji world: drawings, scenes and captions that the embedded model is trained on.

A *drawing* is one emoji rasterised to RGBA, in one of three styles and one of two poses. A *scene*
is one to four copies of a drawing, placed at random without overlap on a coloured background, 64x64
pixels. Its caption names the animal and may name the count, the style and the background: ``cat``,
``a cartoon zebra``, ``two foxes``, ``three paper frogs on a blue background``. What a caption
leaves open differs between its scenes.

The art comes from npm packages (see ``STYLES``), fetched with ``npm pack``; nothing of it is stored
in this repository.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from benchmarks.config import load_task

#: Where the art and the checkpoints of a training are kept.
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "alignprop-bench"

SIZE = 64  # pixels, both sides of a scene
SPRITE_SIZE = 96  # pixels, the raster that scenes scale down from


class Package(NamedTuple):
    """An art set: ``@iconify-json/<name>`` on npm. Attribution stands in README.md."""

    name: str
    version: str
    licence: str


#: The word that asks for a style, and the art set that is drawn in it.
STYLES = {
    "cartoon": Package("twemoji", "1.2.5", "CC-BY-4.0"),
    "painted": Package("noto", "1.2.9", "Apache-2.0"),
    "paper": Package("fluent-emoji-flat", "1.2.6", "MIT"),
}
POSES = ("body", "face")

_TASK = load_task("animals")
#: The paper's 45 training animals, the 6 unseen ones (known to the base model, never used for
#: fine-tuning) and those that hyperparameters are chosen on (the task ``validation``).
TRAIN_ANIMALS, UNSEEN_ANIMALS = list(_TASK.train), list(_TASK.unseen)
VALIDATION_ANIMALS = ["owl", "penguin", "elephant", "giraffe", "panda"]
ANIMALS = [*TRAIN_ANIMALS, *UNSEEN_ANIMALS, *VALIDATION_ANIMALS]

# Where no emoji bears the animal's name, its nearest relative stands in.
_ICON_NAMES = {"sheep": "ewe", "squirrel": "chipmunk", "cheetah": "leopard", "bee": "honeybee"}
# Drawings that show a face though their name does not say so.
_SHARED_FACES = {"lion", "bear", "fox", "wolf", "frog", "panda", "chicken"}
_FACES = {
    "cartoon": _SHARED_FACES | {"zebra", "deer", "raccoon", "gorilla"},
    "painted": _SHARED_FACES,
    "paper": _SHARED_FACES | {"raccoon"},
}
_IRREGULAR_PLURALS = {
    "sheep": "sheep",
    "deer": "deer",
    "wolf": "wolves",
    "fish": "fish",
    "mouse": "mice",
    "goose": "geese",
}

BACKGROUNDS = {
    "white": (250, 250, 250),
    "gray": (150, 150, 155),
    "black": (35, 35, 40),
    "red": (215, 75, 70),
    "orange": (245, 160, 60),
    "yellow": (250, 222, 100),
    "green": (115, 180, 105),
    "blue": (95, 150, 220),
    "purple": (150, 110, 190),
    "pink": (245, 175, 200),
}
NUMBERS = ("one", "two", "three", "four")
#: Pixels, per count; the size of several animals is also one of a single animal, so that size does
#: not give the count away.
_SIDES = {1: (24, 48, 48), 2: (24,), 3: (24,), 4: (24,)}
#: Pixels; sides and corners are multiples of it, the stride of the VAE, so that a drawing looks the
#: same to the U-Net wherever it stands. A 4-pixel grid learned many times slower.
_GRID = 8
_MARGIN = 1  # pixels that a drawing keeps free on each side, so that neighbours do not touch


def plural(animal: str) -> str:
    """English plural of one of ``ANIMALS``."""
    if animal in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[animal]
    if animal.endswith("fly"):
        return animal[:-1] + "ies"
    return animal + ("es" if animal.endswith(("s", "x")) else "s")


def caption(
    animal: str, count: int, background: str | None, style: str | None = None, bare: bool = False
) -> str:
    """The caption of a scene; ``bare`` leaves the article of a single animal away."""
    words = [style] if style else []
    words += [animal if count == 1 else plural(animal)]
    if count > 1:
        words = [NUMBERS[count - 1], *words]
    elif not bare:
        words = ["an" if words[0][0] in "aeiou" else "a", *words]
    text = " ".join(words)
    return f"{text} on a {background} background" if background else text


class Meaning(NamedTuple):
    """What a caption says, as indices; -1 where it leaves background or style open."""

    animal: int  # into ANIMALS
    count: int  # type: ignore[assignment]  # 1 to 4; hides tuple.count
    background: int  # into BACKGROUNDS
    style: int  # into STYLES


def text_of(meaning: Meaning, bare: bool = False) -> str:
    """A caption that says just that."""
    return caption(
        ANIMALS[meaning.animal],
        meaning.count,
        [*BACKGROUNDS, None][meaning.background],
        [*STYLES, None][meaning.style],
        bare,
    )


def meanings() -> Iterator[tuple[str, Meaning]]:
    """Every caption with its meaning; plurals come twice."""
    grounds, styles = range(-1, len(BACKGROUNDS)), range(-1, len(STYLES))
    numbers = range(1, len(NUMBERS) + 1)
    for fields in product(range(len(ANIMALS)), numbers, grounds, styles):
        for bare in (False, True):
            yield text_of(Meaning(*fields), bare), Meaning(*fields)


def all_captions() -> list[str]:
    """Every caption the world can have: the corpus of the tokenizer."""
    return [text for text, _ in meanings()]


@dataclass(frozen=True)
class Scene:
    """What a picture shows. ``image`` is uint8 of shape (SIZE, SIZE, 3)."""

    image: np.ndarray
    animal: int  # index into ANIMALS
    style: int  # index into STYLES
    pose: int  # index into POSES
    count: int  # 1 to 4
    background: int  # index into BACKGROUNDS
    side: int  # pixels, of the square that each animal fills
    centers: np.ndarray  # (count, 2), x and y of the animals' centres, pixels


class Art:
    """All drawings: ``rasters`` (N, SPRITE_SIZE, SPRITE_SIZE, 4) and what each shows, (N,)."""

    def __init__(
        self, rasters: np.ndarray, animal: np.ndarray, style: np.ndarray, pose: np.ndarray
    ) -> None:
        self.rasters, self.animal, self.style, self.pose = rasters, animal, style, pose
        self.stamp = lru_cache(maxsize=None)(self._stamp)

    @classmethod
    def load(cls, cache: Path) -> Art:
        """Fetches and rasterises on the first call (``npm`` and the ``resvg_py`` package are
        needed) and reads ``cache/art.npz`` afterwards."""
        path = cache / "art.npz"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            rows = [
                (raster, animal, style, pose)
                for style, (word, package) in enumerate(STYLES.items())
                for icons in [_read_package(cache, package)]
                for animal, name in enumerate(ANIMALS)
                for pose, raster in _drawings(icons, word, name)
            ]
            names = ("rasters", "animal", "style", "pose")
            columns: dict[str, Any] = dict(
                zip(names, map(np.stack, zip(*rows, strict=True)), strict=True)
            )
            with path.with_suffix(".tmp").open("wb") as file:
                np.savez_compressed(file, **columns)
            path.with_suffix(".tmp").replace(path)
        return cls(**np.load(path))

    def of(self, animal: int, style: int) -> np.ndarray:
        """Indices of an animal's drawings in a style: one or two."""
        return np.flatnonzero((self.animal == animal) & (self.style == style))

    def _stamp(self, drawing: int, side: int) -> Image.Image:
        """A drawing scaled into a square of ``side`` pixels."""
        inner = side - 2 * _MARGIN
        image = Image.fromarray(self.rasters[drawing], "RGBA")
        image = image.resize((inner, inner), Image.Resampling.LANCZOS, reducing_gap=2.0)
        return ImageOps.expand(image, _MARGIN, (0, 0, 0, 0))


def _read_package(cache: Path, package: Package) -> dict[str, Any]:
    archive = cache / f"iconify-json-{package.name}-{package.version}.tgz"
    if not archive.exists():
        spec = f"@iconify-json/{package.name}@{package.version}"
        subprocess.run(["npm", "pack", "--silent", spec], cwd=cache, check=True)
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/icons.json")
        assert member is not None
        return json.load(member)


def _drawings(icons: dict[str, Any], style: str, animal: str) -> Iterator[tuple[int, np.ndarray]]:
    """Pose and raster of an animal's drawings: whole body and face, as far as they differ."""
    name = _ICON_NAMES.get(animal, animal)
    known = icons["icons"] | icons.get("aliases", {})
    bodies = set()
    for icon_name in (name, f"{name}-face"):
        icon = known.get(icon_name)
        while icon is not None and "parent" in icon:
            icon = known[icon["parent"]]
        if icon is None or icon["body"] in bodies:
            continue
        bodies.add(icon["body"])
        face = icon_name.endswith("-face") or animal in _FACES[style]
        yield POSES.index("face" if face else "body"), _rasterise(icons, icon["body"])


def _rasterise(icons: dict[str, Any], body: str) -> np.ndarray:
    """One icon, cropped to its ink and centred on a SPRITE_SIZE square."""
    import resvg_py

    width, height = icons.get("width", 16), icons.get("height", 16)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{body}</svg>'
    )
    big = resvg_py.svg_to_bytes(svg_string=svg, width=4 * SPRITE_SIZE, height=4 * SPRITE_SIZE)
    image = Image.open(io.BytesIO(bytes(big))).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS))


def draw(art: Art, drawing: int, count: int, background: int, rng: np.random.Generator) -> Scene:
    """Place ``count`` copies of a drawing at random, without overlap, on a flat background.

    All copies have the same random size.
    """
    color = np.array(list(BACKGROUNDS.values())[background]) + rng.uniform(-8, 8, 3)
    image = Image.new("RGB", (SIZE, SIZE), tuple(np.clip(color, 0, 255).astype(int).tolist()))
    side = int(rng.choice(_SIDES[count]))
    stamp = art.stamp(int(drawing), side)
    corners = _place(count, side, rng)
    for x, y in corners:
        image.paste(stamp, (int(x), int(y)), stamp)
    return Scene(
        image=np.asarray(image),
        animal=int(art.animal[drawing]),
        style=int(art.style[drawing]),
        pose=int(art.pose[drawing]),
        count=count,
        background=background,
        side=side,
        centers=corners + side / 2,
    )


def _place(count: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Upper left corners (count, 2) of squares of ``side`` that do not overlap."""
    while True:
        corners = _GRID * rng.integers(0, (SIZE - side) // _GRID + 1, (count, 2))
        distance = np.abs(corners[:, None] - corners[None]).max(-1)
        distance[np.arange(count), np.arange(count)] = SIZE
        if distance.min() >= side:
            return corners


def scenes(
    art: Art, seed: int, counts: tuple[int, ...] = (1, 1, 1, 2, 2, 3, 3, 3, 4, 4)
) -> Iterator[Scene]:
    """An endless stream of random scenes; three animals come oftener, being hardest to draw."""
    rng = np.random.default_rng(seed)
    while True:
        animal, style = int(rng.integers(len(ANIMALS))), int(rng.integers(len(STYLES)))
        drawing = int(rng.choice(art.of(animal, style)))
        count = int(rng.choice(counts))
        yield draw(art, drawing, count, int(rng.integers(len(BACKGROUNDS))), rng)


def nearest_background(images: np.ndarray) -> np.ndarray:
    """The palette entry nearest to the median border colour.

    ``images`` is uint8 (B, H, W, 3); returns (B,) indices into BACKGROUNDS.
    """
    edges = (images[:, :2], images[:, -2:], images[:, :, :2], images[:, :, -2:])
    border = np.concatenate([edge.reshape(len(images), -1, 3) for edge in edges], axis=1)
    color = np.median(border, axis=1)
    palette = np.array(list(BACKGROUNDS.values()))
    return np.linalg.norm(color[:, None] - palette[None], axis=-1).argmin(1)
