"""Evaluation with fixed noise, off the clock: rewards and what they hide, per split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.api import EvaluationSettings, Reward
from benchmarks.backbone.base import BaseBackbone
from benchmarks.distributed import gather, micro_batches, share
from benchmarks.harness.diversity import measures
from benchmarks.streams import Streams

#: Evaluation noise is the same for every method, seed and run.
NOISE_SEED = 20_231_005


@dataclass(frozen=True)
class Evaluation:
    """One split: pictures (B, 3, H, W) and features (B, D) on the CPU, and what is recorded."""

    split: str
    images: Tensor
    features: Tensor
    record: dict[str, Any]


@torch.no_grad()
def pictures(
    backbone: BaseBackbone,
    prompts: Sequence[str],
    steps: int,
    guidance: float,
    batch: int = 16,
    part: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """(B, 3, H, W) in [0, 1] on the CPU; picture i always starts from the same noise.

    The LoRA matrices are used in this ``part`` of the sampling steps: (0, 0.5) is the noisy half.
    """
    sampler, streams, found = backbone.sampler(steps), Streams(NOISE_SEED), []
    adapted = [part[0] <= i / steps < part[1] for i in range(steps)]
    for indices in micro_batches(range(len(prompts)), batch):
        texts = [prompts[i] for i in indices]
        noise = streams.normal("evaluation", 0, indices, backbone.latent_shape)
        trajectory = backbone.sample(sampler, texts, noise, guidance=guidance, adapted=adapted)
        found.append(backbone.decode(trajectory.final))
    return gather(found)


def calibrate(
    rewards: Mapping[str, Reward], prompts: Sequence[str], draw: Callable[[], Tensor]
) -> dict[str, Any]:
    """Show the base model's pictures to the rewards that depend on it: what each found.

    ``draw`` gives the pictures of ``prompts``; it is called only if a reward asks for them.
    """
    asking = {name: reward for name, reward in rewards.items() if reward.calibrates}
    if not asking:
        return {}
    images = draw()
    return {name: reward.calibrate(images, prompts) for name, reward in asking.items()}


def _mean(values: Tensor) -> float:
    """Of those that are finite: another picture counts as an average one. NaN if none is."""
    return float(values[values.isfinite()].mean())


@torch.no_grad()
def evaluate(
    backbone: BaseBackbone,
    prompts: Mapping[str, Sequence[str]],
    rewards: Mapping[str, Reward],
    space: Reward,
    settings: EvaluationSettings,
    base: Mapping[str, Tensor] | None = None,
    part: tuple[float, float] = (0.0, 1.0),
    drawn: Mapping[str, Tensor] | None = None,
) -> list[Evaluation]:
    """Draw and score every split with the backbone's present weights.

    ``prompts`` has one prompt per picture for each split, ``space`` is the feature space, ``base``
    the base model's features by split (None: this is the base model). ``part`` as in ``pictures``;
    ``drawn`` are pictures by split that are there already, and only scored.
    """
    results = []
    with backbone.ledger.paused():
        for split, asked in prompts.items():
            images = (
                drawn[split]
                if drawn
                else pictures(
                    backbone, asked, settings.sampling_steps, settings.guidance, part=part
                )
            )
            rows = share(range(len(asked)))
            mine, texts = images[list(rows)].to(backbone.device), [asked[i] for i in rows]
            scores = {n: gather([r(mine, texts)] if texts else []) for n, r in rewards.items()}
            features = gather([space.features(mine)] if texts else [])
            record = {
                "split": split,
                "rewards": {name: _mean(values) for name, values in scores.items()},
                **measures(features, asked, base[split] if base else None),
                "per_image": [
                    {"prompt": p, "rewards": {n: float(v[i]) for n, v in scores.items()}}
                    for i, p in enumerate(asked)
                ],
            }
            results.append(Evaluation(split, images, features, record))
    return results
