r"""Best of N: draw N pictures of a prompt and deliver the one with the highest reward.

Nothing is trained: each delivered picture costs N trajectories, N decoded pictures and N queries,
and its reward is a draw from the distribution of the largest of N rewards of the base model, whose
distance from the base model is at most log N - (N - 1) / N (Beirami et al. 2024, arXiv 2401.01879).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from methods import Candidates, Context, Selection, UserError, register_selection, torch


@register_selection("best-of-n")
class BestOfN(Selection):
    """Delivers the candidate with the highest reward."""

    Config: ClassVar[type] = Candidates
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})

    def __init__(self, config: Candidates, context: Context) -> None:
        if config.candidates < 1:
            raise UserError(f"candidates is {config.candidates}; choose 1 or more")
        self.config, self.context = config, context
        self.sampler = context.backbone.sampler(config.sampling_steps)

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], pictures: Sequence[int]) -> torch.Tensor:
        backbone, streams = self.context.backbone, self.context.streams
        best = highest = None
        for n in range(self.config.candidates):  # one after the other: no more memory than one
            noise = streams.normal("evaluation", n, pictures, backbone.latent_shape)
            trajectory = backbone.sample(
                self.sampler, prompts, noise, guidance=self.config.guidance
            )
            images = backbone.decode(trajectory.final)
            rewards = self.context.reward(images, prompts)
            if best is None or highest is None:
                best, highest = images, rewards
                continue
            better = rewards > highest
            best = torch.where(better[:, None, None, None], images, best)
            highest = torch.where(better, rewards, highest)
        assert best is not None
        return best
