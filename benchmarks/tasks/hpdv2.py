"""The prompts of HPSv2's benchmark (Wu et al. 2023, arXiv 2306.09341), from its package."""

from __future__ import annotations

from itertools import chain

from benchmarks.api import Task, UserError
from benchmarks.registry import register_task

TRAIN, UNSEEN = 752, 50  # as many as in the AlignProp paper


@register_task("hpdv2")
def hpdv2() -> Task:
    """HPSv2's benchmark prompts, its four styles in turn: 752 to train on and 50 others.

    The AlignProp paper says how many, and its own lists are not in the package; so the prompts are
    ours. The package downloads them. Raises UserError without it.
    """
    try:
        from hpsv2 import benchmark_prompts
    except (ImportError, OSError) as error:
        raise UserError(
            f"task 'hpdv2' needs the package hpsv2 ({error}): pip install -e '.[hps]'"
        ) from error
    styles = benchmark_prompts("all").values()
    prompts = list(dict.fromkeys(chain.from_iterable(zip(*styles, strict=False))))
    return Task(
        name="hpdv2",
        train=tuple(prompts[:TRAIN]),
        unseen=tuple(prompts[TRAIN : TRAIN + UNSEEN]),
        held_out=("alignment",),
        train_every=16,
        train_images=2,
        unseen_images=2,
    )
