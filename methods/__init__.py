"""Methods: one readable file each. All that a method needs is imported from here.

``register_method`` makes one known to the registry, ``method_variant`` a configuration of it;
``register_selection`` what draws better pictures without training.
"""

from benchmarks.api import (
    AdamW,
    Batch,
    Candidates,
    Context,
    Method,
    Sampling,
    Selection,
    StepResult,
    UserError,
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
    "Method",
    "Optimizer",
    "Sampling",
    "Selection",
    "StepResult",
    "UserError",
    "gather",
    "method_variant",
    "micro_batches",
    "register_method",
    "register_selection",
    "share",
    "torch",
    "total",
]
