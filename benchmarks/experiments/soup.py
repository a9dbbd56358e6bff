"""LoRA checkpoints and their mixes in weight space ("soups").

A mix is of the products B A, which are what is added to the weights, and not of A and B apart:
sum_i c_i B_i A_i = [c_1 B_1, c_2 B_2, ...] [A_1; A_2; ...], exact at the sum of the ranks. The base
model is the zero product, so (1 - c) base + c checkpoint is the checkpoint's product times c.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.backbone.lora_file import A, B, State


def rank(state: State) -> int:
    """The largest rank of any layer."""
    return max(value.shape[0] for key, value in state.items() if key.endswith(A))


def mix(states: Sequence[State], coefficients: Sequence[float], size: int | None = None) -> State:
    """The state whose products are the weighted sum of the ``states``' products.

    Every layer gets rank ``size`` (the sum of the ranks if None), filled up with zeros.
    """
    size = size or sum(map(rank, states))
    mixed: State = {}
    for name in dict.fromkeys(k.removesuffix(A) for s in states for k in s if k.endswith(A)):
        pairs = [(c, s) for c, s in zip(coefficients, states, strict=True) if name + A in s]
        down = torch.cat([s[name + A] for _, s in pairs])
        up = torch.cat([c * s[name + B] for c, s in pairs], dim=1)
        empty = size - len(down)
        mixed[name + A] = torch.cat([down, down.new_zeros(empty, down.shape[1])])
        mixed[name + B] = torch.cat([up, up.new_zeros(len(up), empty)], dim=1)
    return mixed
