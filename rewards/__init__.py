"""Rewards: one file per family. ``register_reward`` makes one known to the registry."""

from benchmarks.api import Reward
from benchmarks.registry import register_reward

__all__ = ["Reward", "register_reward"]
