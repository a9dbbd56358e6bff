"""Methods: one readable file each. All that a method needs is imported from here.

``register_method`` makes one known to the registry, ``method_variant`` a configuration of it.
"""

from benchmarks.api import (
    AdamW,
    Batch,
    Context,
    Method,
    Sampler,
    Sampling,
    StepResult,
    Trajectory,
    UserError,
)
from benchmarks.distributed import gather, micro_batches, share, total
from benchmarks.lazy import torch
from benchmarks.optim import Optimizer
from benchmarks.registry import method_variant, register_method

__all__ = [
    "AdamW",
    "Batch",
    "Context",
    "Method",
    "Optimizer",
    "Sampler",
    "Sampling",
    "StepResult",
    "Trajectory",
    "UserError",
    "gather",
    "method_variant",
    "micro_batches",
    "register_method",
    "share",
    "torch",
    "total",
]
