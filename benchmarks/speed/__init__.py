"""How fast training is, beside TRL and beside the bare passes: ``python -m benchmarks.speed``."""
