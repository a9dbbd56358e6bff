"""List what is known: methods, selections, rewards, backbones, tasks and suites, and whence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks import registry
from benchmarks.api import UserError
from benchmarks.cli import cli

#: What methods need of the reward, and the heading they stand under.
NEEDS = {
    "reward_grad": "methods that need the gradient of the reward",
    "reward": "methods that need the reward's value only, so a black box will do",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to list."""

    kinds: tyro.conf.Positional[tuple[str, ...]] = ()
    """methods, selections, rewards, backbones, tasks or suites. Default: all of them."""
    plugin: tuple[Path, ...] = ()
    """Python files that register things. They are run."""


def main(arguments: list[str]) -> int:
    """Print all names of the given kinds, or of every kind, and what is broken."""
    options: Options = cli(
        Options, args=arguments, prog="run_benchmark.py list", description=__doc__
    )
    broken = []
    for plugin in options.plugin:
        try:
            registry.load_plugin(plugin)
        except UserError as error:
            broken.append(str(error))
    for kind in options.kinds or registry.KINDS:
        if kind not in registry.KINDS:
            raise UserError(f"list {kind}: choose from {', '.join(registry.KINDS)}")
        known = registry.KINDS[kind]
        for heading, names in _groups(kind):
            print(f"{heading}:")
            for name in names:
                about = f"{known.summaries[name]}{_unit(kind, name)}"
                print(f"  {name:24} {about} [{known.origins[name]}]")
        for pattern in known.patterns():
            print(f"  {pattern:24} {known.summaries[pattern]} [{known.origins[pattern]}]")
    broken += [f"{where}: {why}" for where, why in registry.broken.items()]
    for text in broken:
        print(f"broken: {text}")
    return 0


def _groups(kind: str) -> list[tuple[str, list[str]]]:
    """The names of a kind under headings: methods by what they need of the reward."""
    names = registry.KINDS[kind].names()
    if kind != "methods":
        return [(kind, names)]
    groups: dict[str, list[str]] = {heading: [] for heading in NEEDS.values()}
    for name in names:
        try:
            needs = registry.methods.get(name).needs
        except UserError as error:
            groups.setdefault(f"methods that cannot be imported ({error})", []).append(name)
            continue
        groups[NEEDS["reward_grad" if "reward_grad" in needs else "reward"]].append(name)
    return [(heading, names) for heading, names in groups.items() if names]


def _unit(kind: str, name: str) -> str:
    """The unit of a reward and whether it has a gradient; nothing for other kinds."""
    if kind != "rewards":
        return ""
    try:
        reward = registry.rewards.get(name)
    except UserError as error:
        return f" (broken: {error})"
    return f" ({reward.unit}; {'differentiable' if reward.differentiable else 'black box'})"
