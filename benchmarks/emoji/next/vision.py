"""The embedded counter and the judge: two small convolutional networks.

* ``Counter`` is a reward: a differentiable count of one animal, by a density map whose integral is
  the number of objects (Lempitsky and Zisserman, "Learning to count objects in images", 2010),
  times the probability that each place shows that animal.
* ``Judge`` is for evaluation only: which animal, how many, in which style and pose. It is never a
  reward, and neither network has seen a generated picture. The background needs no network
  (``data.nearest_background``).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.emoji.next.data import ANIMALS, NUMBERS, POSES, STYLES

Network = TypeVar("Network", bound=nn.Module)


def _conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1),
        nn.GroupNorm(8, channels_out),
        nn.SiLU(),
    )


def _trunk(width: int) -> nn.Sequential:
    """(B, 3, 64, 64) to (B, 4 * width, 16, 16)."""
    return nn.Sequential(
        nn.Conv2d(3, width, 4, stride=2, padding=1),
        nn.SiLU(),
        _conv(width, 2 * width, stride=2),
        _conv(2 * width, 4 * width),
        _conv(4 * width, 4 * width),
    )


class Counter(nn.Module):
    """Density-map counter. Input: images (B, 3, 64, 64) in [0, 1]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.trunk = _trunk(width)
        self.context = nn.Sequential(
            _conv(4 * width, 6 * width, stride=2), _conv(6 * width, 6 * width)
        )
        self.density = nn.Conv2d(10 * width, 1, 1)
        self.animal = nn.Conv2d(10 * width, len(ANIMALS), 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Density (B, 16, 16), objects per cell, and animal logits (B, len(ANIMALS), 16, 16)."""
        near = self.trunk(2 * images - 1)
        far = F.interpolate(self.context(near), scale_factor=2.0, mode="nearest")
        features = torch.cat([near, far], 1)
        return F.softplus(self.density(features) - 5)[:, 0], self.animal(features)

    def count(self, images: Tensor, animals: Tensor) -> Tensor:
        """The number of ``animals`` (B,), indices into ANIMALS, in each picture: (B,) floats.

        Which animal it is, is read where it is clearest: parts of a large one lie in cells that
        look like no animal, and weighting cell by cell would count it as a quarter.
        """
        density, logits = self(images)
        which = logits.flatten(2).logsumexp(2).softmax(1)
        return density.flatten(1).sum(1) * which[torch.arange(len(images)), animals]


class Verdict(NamedTuple):
    """Logits of what a picture shows."""

    animal: Tensor  # (B, len(ANIMALS))
    count: Tensor  # type: ignore[assignment]  # (B, 4), of one to four; hides tuple.count
    style: Tensor  # (B, len(STYLES))
    pose: Tensor  # (B, len(POSES))


class Judge(nn.Module):
    """Classifier of animal, count, style and pose. Input: images (B, 3, 64, 64) in [0, 1]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.trunk = _trunk(width)
        self.body = nn.Sequential(
            _conv(4 * width, 6 * width, stride=2),
            _conv(6 * width, 6 * width),
            _conv(6 * width, 8 * width, stride=2),
            _conv(8 * width, 8 * width),
        )
        self.animal = nn.Linear(8 * width, len(ANIMALS))
        self.style = nn.Linear(8 * width, len(STYLES))
        self.pose = nn.Linear(8 * width, len(POSES))
        self.count = nn.Sequential(
            nn.Flatten(), nn.Linear(8 * width * 16, 64), nn.SiLU(), nn.Linear(64, len(NUMBERS))
        )

    def forward(self, images: Tensor) -> Verdict:
        features = self.body(self.trunk(2 * images - 1))
        clearest = features.amax((2, 3))
        return Verdict(
            self.animal(clearest), self.count(features), self.style(clearest), self.pose(clearest)
        )


def write(state: dict[str, Tensor], path: Path, **notes: str) -> None:
    """Write weights in half precision, whole or not at all, with ``notes`` as metadata."""
    part = path.with_suffix(".tmp")
    save_file({k: v.half().contiguous() for k, v in state.items()}, part, notes)
    part.replace(path)


def read(path: Path) -> dict[str, Tensor]:
    """Weights in single precision."""
    return {k: v.float() for k, v in load_file(path).items()}


def save(module: nn.Module, path: Path) -> None:
    write(module.state_dict(), path)


def load(module: Network, path: Path) -> Network:
    """Read weights into ``module``; returns it frozen, in evaluation mode."""
    module.load_state_dict(read(path))
    return module.eval().requires_grad_(False)
