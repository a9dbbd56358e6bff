"""``gold-taste``: a taste in closed form, the truth that learned rewards are measured against.

A made-up critic who likes painted animals, large and in the middle, on a warm ground from which
they stand out, and dislikes everything overdone. Nothing is ever optimised for it or fitted to a
picture's gradient of it: the proxies (``taste_models.py``) see noisy ratings only, so that what
over-optimisation of a proxy does to the truth can be read off (Gao et al., "Scaling laws for reward
model overoptimization", 2023).

Four parts, each in [0, 1], are averaged:

style        the judge's probabilities of the styles times ``STYLE_TASTE``
composition  half for coverage, the share of the picture that animals fill, best at a third; half
             for balance, how near to the middle of the picture their common centre is
contrast     the distance between the animals' mean colour and the ground, full from 60 units
colour       a ground that is warm, and coloured but not garish: chroma best at 55 units

and the average is multiplied by the judge's certainty of the animal: where nothing can be
recognised there is nothing to like. Colours are measured in CIELAB, where a unit is roughly the
smallest difference that one sees.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.emoji.next.data import STYLES, Meaning, nearest_background
from benchmarks.emoji.next.vision import Judge, Verdict

STYLE_TASTE = {"cartoon": 0.5, "painted": 1.0, "paper": 0.0}
WARM = 60.0  # degrees, the hue liked best: between orange and yellow
INK = 15.0  # units of CIELAB by which a pixel of an animal differs from the ground


class Taste(NamedTuple):
    """The parts of the gold taste, (B,) each in [0, 1]."""

    style: Tensor
    composition: Tensor
    contrast: Tensor
    colour: Tensor
    certainty: Tensor

    @property
    def total(self) -> Tensor:
        """The gold taste, (B,) in [0, 1]."""
        parts = torch.stack([self.style, self.composition, self.contrast, self.colour])
        return self.certainty * parts.mean(0)


@torch.no_grad()
def taste(images: Tensor, judge: Judge) -> Taste:
    """``images`` (B, 3, 64, 64) in [0, 1]."""
    verdict = judge(images)
    liking = torch.tensor([STYLE_TASTE[name] for name in STYLES], device=images.device)
    lab = cielab(images)
    ground = _border(lab).median(-1).values  # (B, 3)
    ink = (lab - ground[:, :, None, None]).norm(dim=1) > INK
    return Taste(
        style=verdict.style.softmax(1) @ liking,
        composition=(_coverage(ink) + _balance(ink)) / 2,
        contrast=_contrast(lab, ground, ink),
        colour=_colour(ground),
        certainty=verdict.animal.softmax(1).amax(1),
    )


class Reading(NamedTuple):
    """What pictures show: the judge's log-probabilities, and the background (B,) of the pixels."""

    verdict: Verdict
    background: Tensor

    def rows(self, index: Tensor) -> Reading:
        verdict = Verdict(*(values[index] for values in self.verdict))
        return Reading(verdict, self.background[index])


@torch.no_grad()
def read(images: Tensor, judge: Judge) -> Reading:
    pixels = (images.permute(0, 2, 3, 1) * 255).byte().cpu().numpy()
    verdict = Verdict(*(logits.log_softmax(1) for logits in judge(images)))
    return Reading(verdict, torch.from_numpy(nearest_background(pixels)).to(images.device))


def fidelity(reading: Reading, meanings: list[Meaning]) -> Tensor:
    """The log-probability, (B,), of all that the captions name.

    The background has no network: it counts as certain where the border's colour is nearest to it
    and as one in a hundred elsewhere.
    """
    rows = torch.arange(len(meanings))
    animal, count, background, style = torch.tensor(meanings).T
    drawn = reading.verdict.style[rows, style.clamp_min(0)]
    wrong = (background >= 0) & (reading.background != background)
    return (
        reading.verdict.animal[rows, animal]
        + reading.verdict.count[rows, count - 1]
        + torch.where(style >= 0, drawn, 0)
        + math.log(0.01) * wrong
    )


def cielab(images: Tensor) -> Tensor:
    """sRGB (B, 3, H, W) in [0, 1] to CIELAB of the same shape (illuminant D65)."""
    linear = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    to_xyz = images.new_tensor(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz / to_xyz.sum(1, keepdim=True), linear)
    small = (6 / 29) ** 3
    f = torch.where(xyz > small, xyz.clamp_min(small) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def _border(pictures: Tensor) -> Tensor:
    """The outermost two pixels on each side: (B, 3, H, W) to (B, 3, N)."""
    sides = (
        pictures[:, :, :2],
        pictures[:, :, -2:],
        pictures[:, :, 2:-2, :2],
        pictures[:, :, 2:-2, -2:],
    )
    return torch.cat([side.flatten(2) for side in sides], 2)


def _coverage(ink: Tensor) -> Tensor:
    share = ink.float().mean((1, 2))
    return torch.exp(-(((share - 1 / 3) / 0.2) ** 2))


def _balance(ink: Tensor) -> Tensor:
    """1 where the ink's centre is that of the picture, 0 from half a picture's side off."""
    weight = ink.float() / ink.sum((1, 2), keepdim=True).clamp_min(1)
    height, width = ink.shape[1:]
    y = (weight.sum(2) @ torch.arange(height).to(weight)) / (height - 1) - 0.5
    x = (weight.sum(1) @ torch.arange(width).to(weight)) / (width - 1) - 0.5
    balance = 1 - torch.hypot(x, y) / 0.5
    return torch.where(ink.any((1, 2)), balance.clamp_min(0), 0)


def _contrast(lab: Tensor, ground: Tensor, ink: Tensor) -> Tensor:
    inside = ink[:, None].float()
    mean = (lab * inside).sum((2, 3)) / inside.sum((2, 3)).clamp_min(1)
    distance = (mean - ground).norm(dim=1)
    return torch.where(ink.any((1, 2)), (distance / 60).clamp_max(1), 0)


def _colour(ground: Tensor) -> Tensor:
    chroma = ground[:, 1:].norm(dim=1)
    hue = torch.atan2(ground[:, 2], ground[:, 1])
    warmth = (1 + torch.cos(hue - torch.deg2rad(torch.tensor(WARM)))) / 2
    return torch.exp(-(((chroma - 55) / 25) ** 2)) * warmth
