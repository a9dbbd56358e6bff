"""What a reward alone hides: measures on the features (B, D) of evaluated pictures.

A feature space is a reward's ``features``; rows are brought to length 1 here. Distances are
1 - cosine, from 0 (the same) over 1 (unrelated) to 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def measures(features: Tensor, prompts: Sequence[str], base: Tensor | None) -> dict[str, float]:
    """All measures by name; ``base`` (B, D) are the base model's from the same prompts and noise.

    Without ``base`` these are the base model's pictures, and ``drift`` is 0.
    """
    return {
        "diversity": within_prompts(features, prompts),
        "vendi": vendi(features),
        "drift": 0.0 if base is None else drift(features, base),
        "collapse": across_prompts(features, prompts),
    }


def within_prompts(features: Tensor, prompts: Sequence[str]) -> float:
    """Mean pairwise distance between pictures of one prompt, averaged over prompts.

    0: a prompt always gives the same picture. NaN if no prompt has two pictures.
    """
    distance = 1 - _cosines(features)
    means = []
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, p in enumerate(prompts) if p == prompt]
        if len(rows) > 1:
            first, second = torch.triu_indices(len(rows), len(rows), offset=1)
            means.append(distance[rows][:, rows][first, second].mean())
    return float(torch.stack(means).mean()) if means else float("nan")


def across_prompts(features: Tensor, prompts: Sequence[str]) -> float:
    """Mean cosine between pictures of different prompts; NaN if there is only one prompt.

    1: the same picture for every prompt. Read it beside the base model's.
    """
    numbers = {prompt: i for i, prompt in enumerate(prompts)}
    ids = torch.tensor([numbers[prompt] for prompt in prompts], device=features.device)
    other = ids[:, None] != ids[None, :]
    return float(_cosines(features)[other].mean()) if other.any() else float("nan")


def vendi(features: Tensor) -> float:
    """Vendi score (Friedman and Dieng 2023, arXiv 2210.02410, definition 3.1), cosine kernel.

    The effective number of different pictures: 1 (all the same) to B (all orthogonal). It is
    exp of the entropy of the eigenvalues of K / B. NaN if a feature is not finite.
    """
    if not features.isfinite().all():
        return float("nan")
    values = torch.linalg.eigvalsh(_cosines(features) / len(features)).clamp(min=0)
    return float(torch.special.entr(values).sum().exp())


def drift(features: Tensor, base: Tensor) -> float:
    """Mean distance between each picture and the base model's from the same prompt and noise."""
    pairs = F.cosine_similarity(features.double(), base.to(features.device).double())
    return float((1 - pairs).clamp(min=0).mean())


def _cosines(features: Tensor) -> Tensor:
    rows = F.normalize(features.double())
    return (rows @ rows.T).clamp(-1, 1)
