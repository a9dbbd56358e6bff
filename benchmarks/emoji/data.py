"""The emoji world: sprites, scenes and captions that the embedded model is trained on.

A *sprite* is one emoji rasterised to RGBA. A *scene* is one to four copies of a sprite, placed at
random without overlap on a coloured background, 64x64 pixels. Its caption names the animal and may
name the count and the background: ``cat``, ``a zebra``, ``two foxes``,
``three frogs on a blue background``.

The art is Twemoji, from an npm package under CC-BY-4.0 (see ``PACKAGES``). It is fetched with
``npm pack``; nothing of it is stored in this repository.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.config import load_task

#: Where the art and the checkpoints of a training are kept.
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "alignprop-bench"

SIZE = 64  # pixels, both sides of a scene
SPRITE_SIZE = 96  # pixels, the raster that scenes scale down from

#: npm package -> (version, licence). Attribution stands in MODEL_CARD.md.
PACKAGES = {
    "twemoji": ("1.2.5", "CC-BY-4.0"),
}

_TASK = load_task("animals")
#: The paper's 45 training animals, the 6 unseen ones (known to the base model, never used for
#: fine-tuning) and those that hyperparameters are chosen on (the task ``validation``).
TRAIN_ANIMALS, UNSEEN_ANIMALS = list(_TASK.train), list(_TASK.unseen)
VALIDATION_ANIMALS = ["owl", "penguin", "elephant", "giraffe", "panda"]
ANIMALS = [*TRAIN_ANIMALS, *UNSEEN_ANIMALS, *VALIDATION_ANIMALS]

# Where no emoji bears the animal's name, its nearest relative stands in.
_ICON_NAMES = {
    "sheep": "ewe",
    "squirrel": "chipmunk",
    "cheetah": "leopard",
    "bee": "honeybee",
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
_SIDES = {1: 48, 2: 24, 3: 24, 4: 24}  # pixels, per count
#: Pixels; corners stand on multiples of it, the stride of the VAE, so that a sprite looks the same
#: to the U-Net wherever it stands. A 4-pixel grid learned many times slower.
_GRID = 8


def plural(animal: str) -> str:
    """English plural of one of ``ANIMALS``."""
    if animal in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[animal]
    if animal.endswith("fly"):
        return animal[:-1] + "ies"
    return animal + ("es" if animal.endswith(("s", "x")) else "s")


def caption(animal: str, count: int, background: str | None, bare: bool = False) -> str:
    """The caption of a scene; ``bare`` leaves the article of a single animal away."""
    if count == 1:
        text = animal if bare else f"{'an' if animal[0] in 'aeiou' else 'a'} {animal}"
    else:
        text = f"{NUMBERS[count - 1]} {plural(animal)}"
    return f"{text} on a {background} background" if background else text


@dataclass(frozen=True)
class Scene:
    """What a picture shows. ``image`` is uint8 of shape (SIZE, SIZE, 3)."""

    image: np.ndarray
    animal: int  # index into ANIMALS
    count: int  # 1 to 4
    background: int  # index into BACKGROUNDS
    centers: np.ndarray  # (count, 2), x and y of the sprites' centres, pixels

    def random_caption(self, rng: np.random.Generator) -> str:
        """A random true caption: half of them name the background."""
        background = list(BACKGROUNDS)[self.background] if rng.random() < 0.5 else None
        return caption(ANIMALS[self.animal], self.count, background, bare=rng.random() < 0.4)


def load_sprites(cache: Path) -> list[list[Image.Image]]:
    """RGBA sprites, one list per animal and one sprite per package.

    Fetches and rasterises on the first call (``npm`` and the ``resvg_py`` package are needed) and
    reads ``cache/sprites.npz`` afterwards.
    """
    path = cache / "sprites.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        icons = [_read_package(cache, name) for name in PACKAGES]
        rasters = np.stack([[_rasterise(icon, a) for icon in icons] for a in ANIMALS])
        with path.with_suffix(".tmp").open("wb") as file:
            np.savez_compressed(file, rasters=rasters)
        path.with_suffix(".tmp").replace(path)
    rasters = np.load(path)["rasters"]
    return [[Image.fromarray(r, "RGBA") for r in row] for row in rasters]


def _read_package(cache: Path, name: str) -> dict[str, Any]:
    version, _ = PACKAGES[name]
    archive = cache / f"iconify-json-{name}-{version}.tgz"
    if not archive.exists():
        spec = f"@iconify-json/{name}@{version}"
        subprocess.run(["npm", "pack", "--silent", spec], cwd=cache, check=True)
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/icons.json")
        assert member is not None
        return json.load(member)


def _rasterise(icons: dict[str, Any], animal: str) -> np.ndarray:
    """One sprite, cropped to its ink and centred on a SPRITE_SIZE square."""
    import resvg_py

    name = _ICON_NAMES.get(animal, animal)
    known = icons["icons"] | icons.get("aliases", {})
    name = f"{name}-face" if f"{name}-face" in known else name
    icon = known[name]
    while "parent" in icon:
        icon = known[icon["parent"]]
    width, height = icons.get("width", 16), icons.get("height", 16)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    )
    big = resvg_py.svg_to_bytes(svg_string=svg, width=4 * SPRITE_SIZE, height=4 * SPRITE_SIZE)
    image = Image.open(io.BytesIO(bytes(big))).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS))


def draw(
    sprite: Image.Image, animal: int, count: int, background: int, rng: np.random.Generator
) -> Scene:
    """Place ``count`` copies of a sprite at random, without overlap, on a flat background."""
    color = np.array(list(BACKGROUNDS.values())[background]) + rng.uniform(-8, 8, 3)
    image = Image.new("RGB", (SIZE, SIZE), tuple(np.clip(color, 0, 255).astype(int).tolist()))
    side = _SIDES[count]
    corners = _place(count, side, rng)
    stamp = sprite.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    for x, y in corners:
        image.paste(stamp, (int(x), int(y)), stamp)
    return Scene(np.asarray(image), animal, count, background, corners + side / 2)


def _place(count: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Upper left corners (count, 2) of squares of ``side`` that do not overlap."""
    step = 2 * _GRID if count == 1 else _GRID
    while True:
        corners = step * rng.integers(0, (SIZE - side) // step + 1, (count, 2))
        distance = np.abs(corners[:, None] - corners[None]).max(-1)
        distance[np.arange(count), np.arange(count)] = SIZE
        if distance.min() >= side:
            return corners


def scenes(
    sprites: list[list[Image.Image]],
    seed: int,
    counts: tuple[int, ...] = (1, 1, 1, 2, 2, 3, 3, 3, 4, 4),
) -> Iterator[Scene]:
    """An endless stream of random scenes; three animals come oftener, being hardest to draw."""
    rng = np.random.default_rng(seed)
    while True:
        animal = int(rng.integers(len(ANIMALS)))
        sprite = sprites[animal][rng.integers(len(sprites[animal]))]
        count = int(rng.choice(counts))
        yield draw(sprite, animal, count, int(rng.integers(len(BACKGROUNDS))), rng)


def all_captions() -> list[str]:
    """Every caption the world can have: the corpus of the tokenizer."""
    return [text for text, _, _ in meanings()]


def meanings() -> Iterator[tuple[str, int, int]]:
    """Every caption with its animal (index into ANIMALS) and count; plurals come twice."""
    for i, animal in enumerate(ANIMALS):
        for count in range(1, len(NUMBERS) + 1):
            for background in [None, *BACKGROUNDS]:
                for bare in (False, True):
                    yield caption(animal, count, background, bare), i, count


def nearest_background(images: np.ndarray) -> np.ndarray:
    """The palette entry nearest to the median border colour.

    ``images`` is uint8 (B, H, W, 3); returns (B,) indices into BACKGROUNDS.
    """
    edges = (images[:, :2], images[:, -2:], images[:, :, :2], images[:, :, -2:])
    border = np.concatenate([edge.reshape(len(images), -1, 3) for edge in edges], axis=1)
    color = np.median(border, axis=1)
    palette = np.array(list(BACKGROUNDS.values()))
    return np.linalg.norm(color[:, None] - palette[None], axis=-1).argmin(1)
