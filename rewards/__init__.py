"""Rewards: one file per family. All that a reward needs is imported from here.

``register_reward`` makes one known to the registry; ``reward_class`` gives one by name;
``content`` has digests of files that values depend on, ``cut`` prompts that are too long.
"""

from benchmarks import content
from benchmarks.api import Reward, UserError
from benchmarks.cut_prompts import cut
from benchmarks.lazy import torch
from benchmarks.registry import register_reward, rewards

reward_class = rewards.get

__all__ = ["Reward", "UserError", "content", "cut", "register_reward", "reward_class", "torch"]
