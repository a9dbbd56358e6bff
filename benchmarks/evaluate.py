"""Evaluation with fixed noise, off the clock: rewards and diversity per split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.api import Reward
from benchmarks.backbone.lora_sd import LoraSD
from benchmarks.config import Task
from benchmarks.distributed import gather, parts, share
from benchmarks.streams import Streams

#: Evaluation noise is the same for every method, seed and run.
NOISE_SEED = 20_231_005


@dataclass(frozen=True)
class Evaluation:
    """One split: pictures (B, 3, H, W) on the CPU and the record for ``evals.jsonl``."""

    split: str
    images: Tensor
    record: dict[str, Any]


@torch.no_grad()
def pictures(
    backbone: LoraSD, prompts: list[str], steps: int, guidance: float, batch: int = 16
) -> Tensor:
    """(B, 3, H, W) in [0, 1] on the CPU; picture i always starts from the same noise."""
    sampler, streams, found = backbone.chain(steps), Streams(NOISE_SEED), []
    for indices in parts(range(len(prompts)), batch):
        texts = [prompts[i] for i in indices]
        noise = streams.normal("evaluation", 0, indices, backbone.latent_shape)
        trajectory = backbone.sample(sampler, texts, noise, guidance=guidance)
        found.append(backbone.decode(trajectory.final))
    return gather(found)


def diversity(images: Tensor, prompts: list[str]) -> float:
    """Mean pairwise distance between pictures of one prompt, over all prompts.

    The distance is the root mean square over an 8x8 thumbnail, in units of the [0, 1] pixel range:
    0 means that a prompt always gives the same picture.
    """
    small = F.interpolate(images, size=(8, 8), mode="area").flatten(1)
    distances = []
    for prompt in dict.fromkeys(prompts):
        rows = small[[i for i, p in enumerate(prompts) if p == prompt]]
        if len(rows) > 1:
            distances.append(torch.pdist(rows).mean() / rows.shape[1] ** 0.5)
    return float(torch.stack(distances).mean()) if distances else 0.0


@torch.no_grad()
def evaluate(
    backbone: LoraSD, task: Task, rewards: Mapping[str, Reward], settings: Mapping[str, Any]
) -> list[Evaluation]:
    """Draw and score every split with the backbone's present weights."""
    results = []
    with backbone.ledger.paused():
        for split, prompts in task.evaluation_prompts().items():
            images = pictures(backbone, prompts, settings["sampling_steps"], settings["guidance"])
            rows = share(range(len(prompts)))
            mine, texts = images[list(rows)].to(backbone.device), [prompts[i] for i in rows]
            scores = {n: gather([r(mine, texts)] if texts else []) for n, r in rewards.items()}
            record = {
                "split": split,
                "rewards": {name: float(values.mean()) for name, values in scores.items()},
                "diversity": diversity(images, prompts),
                "per_image": [
                    {"prompt": p, "rewards": {n: float(v[i]) for n, v in scores.items()}}
                    for i, p in enumerate(prompts)
                ],
            }
            results.append(Evaluation(split, images, record))
    return results
