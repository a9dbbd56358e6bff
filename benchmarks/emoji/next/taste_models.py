"""The learned rewards: ``python -m benchmarks.emoji.next.taste_models``.

Both see the gold taste (``taste.py``) through noise only, as a reward model sees people's taste:

aesthetic-mini   LAION's aesthetic predictor in miniature: linear layers on the normalised picture
                 features of the embedded CLIP, fitted to noisy ratings; the prompt is not looked at
preference-mini  HPSv2's recipe: a copy of the embedded CLIP tuned on pairs of pictures of one
                 prompt, of which a noisy critic prefers one (Bradley-Terry); taste and fidelity to
                 the prompt together

Each is trained twice, from two seeds: how far the two part on over-optimised pictures says how much
of a gain is the proxy's own.
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from benchmarks.emoji.next import build, data, pretrain, quality, vision
from benchmarks.emoji.next.taste import Reading, fidelity, read, taste

RATING_NOISE = 1.0  # standard deviation of a rating, on the scale of 1 to 10
FLIPS = 0.15  # of the preferences
FIDELITY = 0.1  # units of gold taste that one unit of the judge's log-probability is worth
SCALE = 20.0  # of the cosine in preference-mini: a margin of 0.05 is odds of e
FLOOR = -5.0  # of the log-probability: wrong is wrong


@dataclass(frozen=True)
class Rated:
    """Pictures, what they were asked to show, and what the critic sees and thinks."""

    images: Tensor  # (B, 3, 64, 64) in [0, 1]
    captions: list[str]
    meanings: list[data.Meaning]
    reading: Reading
    gold: Tensor  # (B,), the gold taste

    def worth(self, pictures: Tensor, prompts: Tensor) -> Tensor:
        """Taste of ``pictures`` and their fidelity to the captions ``prompts``, indices (B,)."""
        asked = [self.meanings[i] for i in prompts.tolist()]
        truth = fidelity(self.reading.rows(pictures), asked)
        return self.gold[pictures] + FIDELITY * truth.clamp_min(FLOOR)


def rate(
    images: Tensor, captions: list[str], meanings: list[data.Meaning], judge: vision.Judge
) -> Rated:
    """``images`` (B, 3, 64, 64) in [0, 1]."""
    parts = images.split(256)
    gold = torch.cat([taste(part, judge).total for part in parts])
    readings = [read(part, judge) for part in parts]
    verdict = vision.Verdict(*map(torch.cat, zip(*(r.verdict for r in readings), strict=True)))
    reading = Reading(verdict, torch.cat([r.background for r in readings]))
    return Rated(images, captions, meanings, reading, gold)


def image_features(clip: CLIPModel, images: Tensor) -> Tensor:
    """Normalised, (B, 128)."""
    pooled = clip.vision_model(pixel_values=2 * images - 1).pooler_output
    return F.normalize(clip.visual_projection(pooled), dim=-1)


def text_features(clip: CLIPModel, tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Normalised, (B, 128)."""
    tokens = tokenizer(captions, padding="max_length", return_tensors="pt")
    pooled = clip.text_model(
        input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
    ).pooler_output
    return F.normalize(clip.text_projection(pooled), dim=-1)


def make_head() -> nn.Sequential:
    """LAION's shape: linear layers with dropout, no activations. (B, 128) to (B, 1)."""
    return nn.Sequential(
        nn.Linear(128, 64), nn.Dropout(0.2), nn.Linear(64, 16), nn.Dropout(0.1), nn.Linear(16, 1)
    )


def fit_aesthetic(clip: CLIPModel, rated: Rated, seed: int, steps: int = 2000) -> nn.Sequential:
    """A head that predicts noisy ratings of 1 to 10 from the features of ``rated``'s pictures."""
    torch.manual_seed(seed)
    with torch.no_grad():
        features = torch.cat([image_features(clip, part) for part in rated.images.split(256)])
    ratings = 1 + 9 * rated.gold + RATING_NOISE * torch.randn(len(features))
    model = make_head()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(features), (256,))
        loss = F.mse_loss(model(features[rows])[:, 0], ratings[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


@torch.no_grad()
def aesthetic(clip: CLIPModel, model: nn.Sequential, images: Tensor) -> Tensor:
    """Predicted ratings, (B,)."""
    return torch.cat([model(image_features(clip, part))[:, 0] for part in images.split(256)])


def draw_pairs(rated: Rated, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Indices (count,) of first pictures, judged under their own captions, and of second ones.

    Half of the second ones were asked for the same animal as often, half for anything.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for i, meaning in enumerate(rated.meanings):
        alike.setdefault((meaning.animal, meaning.count), []).append(i)
    first = rng.integers(len(rated.meanings), size=count)
    second = [
        rng.choice(alike[rated.meanings[i].animal, rated.meanings[i].count])
        if rng.random() < 0.5
        else rng.integers(len(rated.meanings))
        for i in first
    ]
    return torch.from_numpy(first), torch.tensor(np.array(second))


def preference(
    clip: CLIPModel, tokenizer: CLIPTokenizer, images: Tensor, captions: list[str]
) -> Tensor:
    """The scaled cosine of each picture and its caption, (B,)."""
    texts = text_features(clip, tokenizer, captions)
    return clip.logit_scale.exp() * (image_features(clip, images) * texts).sum(1)


def fit_preference(
    clip: CLIPModel, tokenizer: CLIPTokenizer, rated: Rated, seed: int, steps: int = 400
) -> CLIPModel:
    """A copy of ``clip`` that prefers as a critic does who errs in one of seven pairs."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = copy.deepcopy(clip).train().requires_grad_(True)
    model.logit_scale.requires_grad_(False).fill_(math.log(SCALE))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-4, total_steps=steps)
    for _ in range(steps):
        first, second = draw_pairs(rated, 48, rng)
        better = rated.worth(first, first) > rated.worth(second, first)
        better ^= torch.from_numpy(rng.random(len(first)) < FLIPS)
        texts = text_features(model, tokenizer, [rated.captions[i] for i in first.tolist()])
        features = image_features(model, rated.images[torch.cat([first, second])])
        left, right = features.chunk(2)
        margin = model.logit_scale.exp() * ((left - right) * texts).sum(1)
        loss = F.binary_cross_entropy_with_logits(margin, better.float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's."""
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def random_meanings(count: int, rng: np.random.Generator) -> list[data.Meaning]:
    """What ``count`` random captions say; half name the background and half the style."""
    grounds, styles = len(data.BACKGROUNDS), len(data.STYLES)
    return [
        data.Meaning(
            int(rng.integers(len(data.ANIMALS))),
            int(rng.integers(1, 5)),
            int(rng.integers(grounds)) if rng.random() < 0.5 else -1,
            int(rng.integers(styles)) if rng.random() < 0.5 else -1,
        )
        for _ in range(count)
    ]


def drawn(work: Path, stage: str, count: int, seed: int, judge: vision.Judge) -> Rated:
    """Base pictures of random captions, a quarter of them degraded.

    The student draws in ten plain steps and in five, the U-Net with guidance of 1 and 3.
    """
    model, rng = quality.Model(work, stage), np.random.default_rng(seed)
    meanings = random_meanings(count, rng)
    captions = [data.text_of(meaning) for meaning in meanings]
    ways = [(10, 1.0), (5, 1.0)] if stage == "distil" else [(20, 3.0), (20, 1.0)]
    half = count // 2
    parts = [
        model.draw(captions[:half], *ways[0], seed=seed),
        model.draw(captions[half:], *ways[1], seed=seed + 1),
    ]
    torch.manual_seed(seed)
    return rate(_sometimes_degraded(torch.cat(parts), 0.25, rng), captions, meanings, judge)


def scenes(work: Path, count: int, seed: int, judge: vision.Judge) -> Rated:
    """Rendered scenes, half of them degraded: a stand-in for base pictures."""
    stream, rng = data.scenes(data.Art.load(work), seed=seed), np.random.default_rng(seed)
    some = [next(stream) for _ in range(count)]
    images = torch.from_numpy(np.stack([s.image for s in some])).permute(0, 3, 1, 2).float() / 255
    meanings = [
        data.Meaning(
            scene.animal,
            scene.count,
            scene.background if rng.random() < 0.5 else -1,
            scene.style if rng.random() < 0.5 else -1,
        )
        for scene in some
    ]
    captions = [data.text_of(meaning) for meaning in meanings]
    torch.manual_seed(seed)
    return rate(_sometimes_degraded(images, 0.5, rng), captions, meanings, judge)


def _sometimes_degraded(images: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    parts = [
        pretrain.degrade(part, rng) if rng.random() < share else part for part in images.split(16)
    ]
    return torch.cat(parts)


def main() -> None:
    """Both recipes, two seeds each: correlations with what they should have learned."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, default=data.CACHE, help="the folder of pretrain")
    parser.add_argument("--source", choices=("scenes", "unet", "distil"), default="distil")
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=400, help="of preference-mini")
    args = parser.parse_args()
    tokenizer = pretrain.load_tokenizer(args.work)
    judge = vision.load(vision.Judge(), args.work / "judge.safetensors")
    tower = args.work / "image-tower.safetensors"
    tower = tower if pretrain.take(tower) else args.work / "clip.safetensors"
    clip = vision.load(build.clip(tokenizer), tower)
    train, test = (
        scenes(args.work, count, seed, judge)
        if args.source == "scenes"
        else drawn(args.work, args.source, count, seed, judge)
        for count, seed in ((args.pictures, 11), (1000, 12))
    )
    print(f"gold taste: mean {test.gold.mean():.3f}, deviation {test.gold.std():.3f}")
    rows = torch.arange(len(test.gold))
    for seed in (0, 1):
        head = fit_aesthetic(clip, train, seed)
        vision.save(head, args.work / f"aesthetic-mini-{seed}.safetensors")
        agreement = correlation(aesthetic(clip, head, test.images), test.gold)
        print(f"aesthetic-mini, seed {seed}: correlation with gold {agreement:.3f}", flush=True)
    for seed in (0, 1):
        tuned = fit_preference(clip, tokenizer, train, seed, args.steps)
        vision.save(tuned, args.work / f"preference-mini-{seed}.safetensors")
        with torch.no_grad():
            scores = preference(tuned, tokenizer, test.images, test.captions)
        taste_alone, both = (
            correlation(scores, truth) for truth in (test.gold, test.worth(rows, rows))
        )
        print(
            f"preference-mini, seed {seed}: correlation with gold {taste_alone:.3f}, with taste "
            f"and fidelity {both:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
