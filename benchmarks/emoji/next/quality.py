"""Measure the embedded model: ``python -m benchmarks.emoji.next.quality [--json]``.

The judge that recognises animals, counts and styles is neither a reward nor trained on generated
pictures. The VAE's figure and the judge's ceiling need real pictures, for which the art is fetched
once with ``npm pack`` (see ``data.py``). Parts are read from ``--work``, the folder of
``pretrain``; a U-Net that is still in training is read from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from benchmarks.emoji.next import build, data, pretrain, vision

GRID_PROMPTS = (
    *("cat", "a cartoon cat", "a painted cat", "a paper cat", "a zebra", "a painted fox"),
    *("a paper frog", "a cartoon penguin", "a butterfly", "a lion", "a whale", "an octopus"),
    *("two foxes", "two painted pigs", "three frogs on a blue background", "three paper bees"),
    *("four cats", "four cartoon ducks on a pink background", "two owls", "a cheetah"),
    *("a hippopotamus", "a crocodile", "a shark", "a bear on a green background"),
)
COLUMNS = 12  # of a picture grid


class Model:
    """What draws: the U-Net ``stage`` of ``pretrain``, the decoder and the captions' states."""

    def __init__(self, work: Path, stage: str = "distil") -> None:
        self.unet, self.step = _unet(work, stage)
        self.vae: AutoencoderKL = vision.load(build.vae(), pretrain.output(work, "vae"))
        self.states, self.scale = pretrain.Conditions(work), pretrain.Latents(work).scale

    @torch.no_grad()
    def draw(
        self, captions: list[str], steps: int, guidance: float, seed: int = 0, batch: int = 64
    ) -> Tensor:
        """(B, 3, 64, 64) in [0, 1], by DDIM; ``guidance`` 1 takes one pass per step."""
        generator = torch.Generator().manual_seed(seed)
        shape = (len(captions), build.LATENTS, 8, 8)
        noise = torch.randn(shape, generator=generator)
        parts = [
            self._draw(captions[i : i + batch], noise[i : i + batch], steps, guidance)
            for i in range(0, len(captions), batch)
        ]
        return torch.cat(parts)

    def _draw(self, captions: list[str], latents: Tensor, steps: int, guidance: float) -> Tensor:
        schedule = build.scheduler()
        schedule.set_timesteps(steps)
        told, untold = self.states(captions), self.states([""] * len(captions))
        for timestep in schedule.timesteps:
            predicted = self.unet(latents, timestep, encoder_hidden_states=told).sample
            if guidance != 1:
                free = self.unet(latents, timestep, encoder_hidden_states=untold).sample
                predicted = free + guidance * (predicted - free)
            latents = schedule.step(predicted, timestep, latents).prev_sample
        return (self.vae.decode(latents / self.scale).sample / 2 + 0.5).clamp(0, 1)


def _unet(work: Path, stage: str) -> tuple[UNet2DConditionModel, int]:
    """The average of a U-Net and how many steps it was trained."""
    unet, checkpoint = build.unet(), work / f"{stage}.ckpt.pt"
    if pretrain.take(pretrain.output(work, stage)):
        return vision.load(unet, pretrain.output(work, stage)), pretrain.STEPS[stage]
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        unet.load_state_dict(pretrain.averaged(state))
        return unet.eval().requires_grad_(False), state["step"]
    path = pretrain.TRAINED / f"{stage}.average.safetensors"
    return vision.load(unet, path), pretrain.steps_of(path)


@torch.no_grad()
def vae_psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean peak signal-to-noise ratio, dB, over pictures (B, 3, 64, 64) in [0, 1]."""
    errors = []
    for part in pictures.split(50):
        decoded = vae.decode(vae.encode(2 * part - 1).latent_dist.mean).sample / 2 + 0.5
        errors.append((decoded.clamp(0, 1) - part).square().mean((1, 2, 3)))
    return float((-10 * torch.log10(torch.cat(errors))).mean())


@torch.no_grad()
def judged(judge: vision.Judge, images: Tensor) -> dict[str, np.ndarray]:
    """What the judge and the pixels see, (B,) each."""
    parts = [judge(part) for part in images.split(256)]
    seen = {
        name: torch.cat([getattr(part, name) for part in parts]).argmax(1).numpy()
        for name in vision.Verdict._fields
    }
    seen["count"] += 1
    pixels = (images.permute(0, 2, 3, 1) * 255).byte().numpy()
    return seen | {"background": data.nearest_background(pixels)}


def held_out_scenes(count: int, work: Path) -> list[data.Scene]:
    """Scenes that no network has been trained on."""
    stream = data.scenes(data.Art.load(work), seed=2)
    return [next(stream) for _ in range(count)]


def measure_ceilings(work: Path, judge: vision.Judge, count: int = 1000) -> dict[str, Any]:
    """The decoder and the judge on real pictures."""
    real = held_out_scenes(count, work)
    images = torch.from_numpy(np.stack([scene.image for scene in real]))
    images = images.permute(0, 3, 1, 2).float() / 255
    seen = judged(judge, images)
    result: dict[str, Any] = {
        f"judge_ceiling_{name}": _share(values == np.array([getattr(s, name) for s in real]))
        for name, values in seen.items()
    }
    if pretrain.take(pretrain.output(work, "vae")):
        vae = vision.load(build.vae(), pretrain.output(work, "vae"))
        result["vae_psnr_db"] = vae_psnr(vae, images)
        style = torch.tensor([scene.style for scene in real])
        for i, name in enumerate(data.STYLES):
            result[f"vae_psnr_db_{name}"] = vae_psnr(vae, images[style == i])
    return result


def measure(
    model: Model, judge: vision.Judge, steps: int, guidance: float, repeats: int = 4
) -> dict[str, Any]:
    """What the model draws, against what it was asked for."""
    open_ones = [data.Meaning(i, 1, -1, -1) for i in range(len(data.ANIMALS))] * repeats
    # Every animal in every count, twice, with backgrounds and styles in turn.
    grounds, styles = len(data.BACKGROUNDS), len(data.STYLES)
    told = [
        data.Meaning(i, (i + turn) % 4 + 1, (i + turn) % grounds, (i + turn) % styles)
        for turn in range(8)
        for i in range(len(data.ANIMALS))
    ]
    result: dict[str, Any] = {"unet_steps": model.step}
    wanted, seen = _drawn(model, judge, open_ones, steps, guidance, seed=0)
    right = seen["animal"] == wanted["animal"]
    unseen = np.isin(wanted["animal"], [data.ANIMALS.index(a) for a in data.UNSEEN_ANIMALS])
    result |= {"top1": _share(right), "top1_unseen": _share(right[unseen])}
    for i, name in enumerate(data.STYLES):
        result[f"style_share_{name}"] = _share(seen["style"] == i)
    result["face_share"] = _share(seen["pose"] == data.POSES.index("face"))
    result["top1_by_animal"] = {
        name: _share(right[wanted["animal"] == i]) for i, name in enumerate(data.ANIMALS)
    }
    wanted, seen = _drawn(model, judge, told, steps, guidance, seed=1)
    for name in data.Meaning._fields:
        result[f"{name}_accuracy"] = _share(seen[name] == wanted[name])
    result["count_accuracy_by_count"] = {
        n: _share(seen["count"][wanted["count"] == n] == n) for n in range(1, 5)
    }
    start = time.perf_counter()
    model.draw(["a cat"] * 32, steps, guidance, batch=32)
    result["seconds_of_32"] = time.perf_counter() - start
    return result


def _drawn(
    model: Model,
    judge: vision.Judge,
    meanings: list[data.Meaning],
    steps: int,
    guidance: float,
    seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    images = model.draw([data.text_of(m) for m in meanings], steps, guidance, seed)
    columns = np.array(meanings).T
    return dict(zip(data.Meaning._fields, columns, strict=True)), judged(judge, images)


def _share(hits: np.ndarray) -> float:
    return float(hits.mean())


def sheet(pictures: Tensor, path: Path, columns: int = COLUMNS, scale: int = 2) -> None:
    """Save pictures (B, 3, 64, 64) as one, row by row, enlarged."""
    side = scale * data.SIZE
    page = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side))
    for i, pixels in enumerate((pictures.permute(0, 2, 3, 1) * 255).round().byte().numpy()):
        big = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
        page.paste(big, ((i % columns) * side, (i // columns) * side))
    page.save(path)


def grids(model: Model, steps: int, guidance: float, folder: Path) -> None:
    """Uncurated: GRID_PROMPTS, two pictures each; every animal, left open and in each style."""
    folder.mkdir(parents=True, exist_ok=True)
    twice = [prompt for prompt in GRID_PROMPTS for _ in range(2)]
    sheet(model.draw(twice, steps, guidance), folder / "prompts.png")
    rows = [
        data.text_of(data.Meaning(i, 1, -1, style))
        for i in range(len(data.ANIMALS))
        for style in range(-1, len(data.STYLES))
    ]
    sheet(model.draw(rows, steps, guidance), folder / "animals.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--work", type=Path, default=data.CACHE, help="the folder of pretrain")
    parser.add_argument("--unet", choices=("unet", "distil"), default="distil")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=1.0, help="3 for the unet")
    parser.add_argument("--repeats", type=int, default=4, help="pictures of an open prompt")
    parser.add_argument("--grids", type=Path, help="folder for picture grids")
    parser.add_argument("--ceilings", action="store_true", help="only what needs no U-Net")
    args = parser.parse_args()
    judge = vision.load(vision.Judge(), pretrain.output(args.work, "judge"))
    result = measure_ceilings(args.work, judge)
    if not args.ceilings:
        model = Model(args.work, args.unet)
        result |= measure(model, judge, args.steps, args.guidance, args.repeats)
        if args.grids:
            grids(model, args.steps, args.guidance, args.grids)
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for key, value in result.items():
        if not isinstance(value, dict):
            print(f"{key:24} {value:.3f}")
    if worst := sorted(result.get("top1_by_animal", {}).items(), key=lambda item: item[1])[:8]:
        print("least recognised:", ", ".join(f"{name} {share:.2f}" for name, share in worst))


if __name__ == "__main__":
    main()
