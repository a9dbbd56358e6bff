"""Methods: one readable file each. All that a method needs is imported from here.

``register_method`` makes one known to the registry, ``method_variant`` a configuration of it;
``register_selection`` what draws better pictures without training. ``Count``, ``Positive`` and the
like are the types of a Config's numbers, and say what they may be.
"""

from benchmarks.api import (
    AdamW,
    Batch,
    Candidates,
    Context,
    Count,
    Finite,
    Index,
    Method,
    NotNegative,
    Positive,
    Sampler,
    Sampling,
    Selection,
    Share,
    StepResult,
    Trajectory,
    UserError,
    Within,
    ZeroToOne,
)
from benchmarks.distributed import gather, micro_batches, share, total
from benchmarks.lazy import torch
from benchmarks.optim import Optimizer
from benchmarks.registry import method_variant, register_method, register_selection

__all__ = [
    "AdamW",
    "Batch",
    "Candidates",
    "Context",
    "Count",
    "Finite",
    "Index",
    "Method",
    "NotNegative",
    "Optimizer",
    "Positive",
    "Sampler",
    "Sampling",
    "Selection",
    "Share",
    "StepResult",
    "Trajectory",
    "UserError",
    "Within",
    "ZeroToOne",
    "gather",
    "method_variant",
    "micro_batches",
    "register_method",
    "register_selection",
    "share",
    "torch",
    "total",
]
