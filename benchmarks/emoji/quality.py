"""Measure the embedded model: ``python -m benchmarks.emoji.quality [--json]``.

The judge that recognises animals and counts is neither the reward model nor trained on generated
pictures. The VAE's figure and the judge's ceiling need real pictures, for which the art is fetched
once with ``npm pack`` (see ``data.py``).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.backbone import load
from benchmarks.backbone.base import BaseBackbone
from benchmarks.compute.ledger import Ledger
from benchmarks.emoji import data, vision
from benchmarks.emoji.build import WEIGHTS
from benchmarks.harness.evaluate import pictures
from benchmarks.records.cell import to_pil

STEPS, GUIDANCE = 20, 3.0
GRID_PROMPTS = (
    *("cat", "a zebra", "a fox", "a frog", "a penguin", "a butterfly", "a lion", "a whale"),
    *("two foxes", "two pigs", "three frogs on a blue background", "three bees", "four cats"),
    *("four ducks on a pink background", "a snail", "an octopus", "a lobster", "a crocodile"),
    *("a cheetah", "a hippopotamus", "a bear on a green background", "two owls", "a shark"),
    *("a turtle on a yellow background",),
)


@torch.no_grad()
def vae_psnr(backbone: BaseBackbone, scenes: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio, dB, over uint8 pictures (B, H, W, 3)."""
    images = torch.from_numpy(scenes).permute(0, 3, 1, 2).float() / 255
    errors = []
    for part in images.split(50):
        latents = backbone.autoencoder.encode(2 * part - 1).latent_dist.mean
        decoded = backbone.decode(latents * backbone.autoencoder.config.scaling_factor)
        errors.append((decoded - part).square().mean((1, 2, 3)))
    return float((-10 * torch.log10(torch.cat(errors))).mean())


@torch.no_grad()
def judged(images: Tensor) -> tuple[Tensor, Tensor]:
    """The judge's animals (indices into ANIMALS) and counts, (B,) each."""
    judge = vision.load(vision.Judge(), WEIGHTS / "judge.safetensors")
    animal, count = judge(images)
    return animal.argmax(1), count.argmax(1) + 1


def held_out_scenes(count: int, cache: Path) -> list[data.Scene]:
    """Scenes that no network has been trained on."""
    stream = data.scenes(data.load_sprites(cache), seed=2)
    return [next(stream) for _ in range(count)]


def measure(cache: Path, repeats: int = 4) -> dict[str, Any]:
    """All the figures of the model card."""
    backbone = load("emoji", Ledger())
    result: dict[str, Any] = {}
    real = held_out_scenes(500, cache)
    images = np.stack([scene.image for scene in real])
    result["vae_psnr_db"] = vae_psnr(backbone, images)
    animal, count = judged(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    result["judge_ceiling_top1"] = _share(animal == torch.tensor([s.animal for s in real]))
    result["judge_ceiling_count"] = _share(count == torch.tensor([s.count for s in real]))

    prompts = [data.caption(a, 1, None) for a in data.ANIMALS for _ in range(repeats)]
    wanted = torch.arange(len(data.ANIMALS)).repeat_interleave(repeats)
    animal, _ = judged(pictures(backbone, prompts, STEPS, GUIDANCE))
    right = animal == wanted
    unseen = torch.tensor([data.ANIMALS[int(i)] in data.UNSEEN_ANIMALS for i in wanted])
    result["top1"], result["top1_unseen"] = _share(right), _share(right[unseen])
    result["top1_by_animal"] = {
        name: _share(right[wanted == i]) for i, name in enumerate(data.ANIMALS)
    }

    names, counts = list(data.BACKGROUNDS), [1, 2, 3, 4]
    rows = [  # every animal in every count, twice
        (animal, counts[(i + turn) % 4], names[(i + turn) % len(names)])
        for turn in range(8)
        for i, animal in enumerate(data.ANIMALS)
    ]
    prompts = [data.caption(*row) for row in rows]
    drawn = pictures(backbone, prompts, STEPS, GUIDANCE)
    _, count = judged(drawn)
    asked = torch.tensor([n for _, n, _ in rows])
    result["count_accuracy"] = _share(count == asked)
    result["count_accuracy_by_count"] = {n: _share(count[asked == n] == n) for n in counts}
    pixels = (drawn.permute(0, 2, 3, 1) * 255).byte().numpy()
    found = data.nearest_background(pixels)
    result["background_accuracy"] = float(np.mean(found == [names.index(b) for *_, b in rows]))

    start = time.perf_counter()
    pictures(backbone, ["a cat"] * 32, STEPS, GUIDANCE, batch=32)
    result["seconds_32x20"] = time.perf_counter() - start
    return result


def grid(path: Path) -> None:
    """Draw GRID_PROMPTS, two pictures each, uncurated, twice enlarged."""
    backbone = load("emoji", Ledger())
    drawn = pictures(backbone, [p for p in GRID_PROMPTS for _ in range(2)], STEPS, GUIDANCE)
    columns, side = 12, 2 * data.SIZE
    sheet = Image.new("RGB", (columns * side, -(-len(drawn) // columns) * side))
    for i, picture in enumerate(drawn):
        big = to_pil(picture).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(big, ((i % columns) * side, (i // columns) * side))
    sheet.save(path)


def _share(hits: Tensor) -> float:
    return float(hits.float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--work", type=Path, default=data.CACHE, help="where the art is cached")
    parser.add_argument("--grid", type=Path, default=Path("quality_grid.png"), help="picture grid")
    args = parser.parse_args()
    result = measure(args.work)
    grid(args.grid)
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for key, value in result.items():
        if isinstance(value, float):
            print(f"{key:24} {value:.3f}")
    worst = sorted(result["top1_by_animal"].items(), key=lambda item: item[1])[:8]
    print("least recognised:", ", ".join(f"{name} {share:.2f}" for name, share in worst))
    print(f"picture grid: {args.grid}")


if __name__ == "__main__":
    main()
