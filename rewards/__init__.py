"""Rewards: one file per family. All that a reward needs is imported from here.

``register_reward`` makes one known to the registry.
"""

from benchmarks.api import Reward, UserError
from benchmarks.registry import register_reward

__all__ = ["Reward", "UserError", "register_reward"]
