"""Weighted sums of rewards, named by what they are: ``0.7*jpeg+0.3*alignment``.

Rewards have different units, so each is normalised before it is weighted: with r_i the value of
reward i, and m_i and s_i its mean and standard deviation,

    reward = sum_i w_i (r_i - m_i) / s_i

m_i and s_i are measured once, on the base model's pictures of the training prompts with the
evaluation's fixed noise, and then frozen: they are the same for every method and seed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rewards import Reward, UserError, register_reward, reward_class, torch

if TYPE_CHECKING:
    from torch import Tensor

TERM = re.compile(r"(?:(?P<weight>[^*]*)\*)?(?P<name>[^*]+)")


class Mixture(Reward):
    """A weighted sum of normalised rewards."""

    unit = "standard deviations of the base model's pictures"
    reference = "ours: a weighted sum of standardised rewards"
    calibrates = True
    weights: ClassVar[tuple[float, ...]]
    parts: ClassVar[tuple[str, ...]]

    def __init__(self, device: Any) -> None:
        self.rewards = [reward_class(name)(device) for name in self.parts]
        self.normalisers: list[tuple[float, float]] = []

    @classmethod
    def content(cls) -> str:
        return " ".join(filter(None, (reward_class(name).content() for name in cls.parts)))

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        return {p: left for reward in self.rewards for p, left in reward.cut(prompts).items()}

    def calibrate(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Any]:
        record = {}
        for name, reward in zip(self.parts, self.rewards, strict=True):
            with torch.no_grad():
                values = reward(images, prompts).double()
            values = values[values.isfinite()]
            mean, deviation = values.mean().item(), values.std().item()
            if not deviation > 0:
                raise UserError(
                    f"{name!r} is the same for all pictures of the base model, so it cannot be "
                    "normalised for a mixture"
                )
            self.normalisers.append((mean, deviation))
            record[name] = {"mean": mean, "deviation": deviation}
        return record

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if not self.normalisers:
            raise RuntimeError("a mixture must be calibrated before it is used")
        terms = []
        rows = zip(self.weights, self.rewards, self.normalisers, strict=True)
        for weight, reward, (mean, deviation) in rows:
            terms.append(weight * (reward(images, prompts) - mean) / deviation)
        return torch.stack(terms).sum(0)


@register_reward("*[*+]*")
def mixture(expression: str) -> type[Mixture]:
    """0.7*jpeg+0.3*alignment: a weighted sum of normalised rewards."""
    weights, names = zip(*(_term(term, expression) for term in expression.split("+")), strict=True)
    kinds: list[Any] = [reward_class(name) for name in names]
    differentiable = all(kind.differentiable for kind in kinds)
    stand_ins = [n if k.differentiable else k.stand_in for n, k in zip(names, kinds, strict=True)]
    stand_in = None
    if not differentiable and all(stand_ins):
        stand_in = "+".join(f"{w:g}*{n}" for w, n in zip(weights, stand_ins, strict=True))
    recorded = [f"{n}: {k.recorded}" for n, k in zip(names, kinds, strict=True) if k.recorded]
    return type(
        "Mixture",
        (Mixture,),
        {
            "__doc__": Mixture.__doc__,
            "weights": weights,
            "parts": names,
            "differentiable": differentiable,
            "stand_in": stand_in,
            "recorded": "; ".join(recorded),
        },
    )


def _term(term: str, expression: str) -> tuple[float, str]:
    """The weight, 1 if there is none, and the name."""
    match = TERM.fullmatch(term.strip())
    try:
        weight = float(match["weight"] or 1) if match else math.nan
    except ValueError:
        weight = math.nan
    if match is None or not math.isfinite(weight) or weight == 0:
        raise UserError(
            f"--reward {expression}: {term.strip()!r} is not WEIGHT*NAME; write a mixture like "
            "0.7*jpeg+0.3*alignment"
        )
    return weight, match["name"].strip()
