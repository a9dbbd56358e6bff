"""The head of LAION's aesthetic predictor, which ImageReward took over: linear layers only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rewards import torch
from rewards._weights import exact

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (768, 1024, 128, 64, 16, 1)
INDICES = (0, 2, 4, 6, 7)  # of the linear layers in the published files; the others are dropout

Layers = list[tuple["Tensor", "Tensor"]]


def head(state: Mapping[str, Tensor], path: Path) -> Layers:
    """Weight and bias of each layer; UserError unless ``state`` from ``path`` is such a head."""
    shapes = {}
    for i, width, narrow in zip(INDICES, WIDTHS[:-1], WIDTHS[1:], strict=True):
        shapes |= {f"layers.{i}.weight": (narrow, width), f"layers.{i}.bias": (narrow,)}
    exact(state, shapes, path)
    return [(state[f"layers.{i}.weight"], state[f"layers.{i}.bias"]) for i in INDICES]


def apply(layers: Layers, features: Tensor) -> Tensor:
    """(B, 768) to (B,)."""
    for weight, bias in layers:
        weight, bias = weight.to(features), bias.to(features)
        features = torch.nn.functional.linear(features, weight, bias)
    return features[:, 0]
