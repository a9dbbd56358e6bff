"""Methods: one readable file each.

``register_method`` makes one known to the registry, ``method_variant`` a configuration of it.
"""

from benchmarks.api import Context, Method, StepResult
from benchmarks.registry import method_variant, register_method

__all__ = ["Context", "Method", "StepResult", "method_variant", "register_method"]
