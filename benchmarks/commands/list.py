"""``--list [KIND ...]``: the known methods, rewards, backbones and tasks, and whence each comes."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import registry
from benchmarks.api import UserError

KINDS = {
    "methods": registry.methods,
    "rewards": registry.rewards,
    "backbones": registry.backbones,
    "tasks": registry.tasks,
}


def main(arguments: list[str]) -> int:
    """Print all names of the given kinds, or of every kind, and what is broken."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--list", nargs="*")
    parser.add_argument("--plugin", nargs="*", type=Path, default=[])
    options, _ = parser.parse_known_args(arguments)
    for plugin in options.plugin:
        try:
            registry.load_plugin(plugin)
        except UserError as error:
            registry.broken[str(plugin)] = str(error).removeprefix(f"--plugin {plugin}: ")
    for kind in options.list or KINDS:
        if kind not in KINDS:
            raise UserError(f"--list {kind}: choose from {', '.join(KINDS)}")
        known = KINDS[kind]
        print(f"{kind}:")
        for name in known.names():
            print(f"  {name:24} {known.abouts[name]}{_facts(kind, name)} [{known.origins[name]}]")
        for pattern in known.patterns():
            print(f"  {pattern:24} {known.abouts[pattern]} [{known.origins[pattern]}]")
    for where, why in registry.broken.items():
        print(f"broken: {where}: {why}")
    return 0


def _facts(kind: str, name: str) -> str:
    """The unit of a reward and whether it has a gradient; nothing for other kinds."""
    if kind != "rewards":
        return ""
    try:
        reward = registry.rewards.get(name)
    except UserError as error:
        return f" (broken: {error})"
    return f" ({reward.unit}; {'differentiable' if reward.differentiable else 'black box'})"
