"""Methods: one readable file each. ``register_method`` makes one known to the registry."""

from benchmarks.api import Context, Method, StepResult
from benchmarks.registry import register_method

__all__ = ["Context", "Method", "StepResult", "register_method"]
