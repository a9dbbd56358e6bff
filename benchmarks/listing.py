"""``--list``: the known methods, rewards, backbones and tasks, with where each comes from."""

from __future__ import annotations

from benchmarks import config, registry
from benchmarks.api import UserError

KINDS = ("methods", "rewards", "backbones", "tasks")


def print_lists(kinds: list[str]) -> int:
    """Print all names of the given kinds, or of every kind."""
    for kind in kinds or KINDS:
        if kind not in KINDS:
            raise UserError(f"--list {kind}: choose from {', '.join(KINDS)}")
        print(f"{kind}:")
        if kind in ("methods", "rewards"):
            known = registry.methods if kind == "methods" else registry.rewards
            for name in known.names():
                headline = (known.get(name).__doc__ or "").split("\n")[0]
                summary = known.variants.get(name, headline)
                print(f"  {name:24} {summary} [{known.origins[name]}]")
            for where, why in known.broken.items():
                print(f"  broken: {where}: {why}")
        elif kind == "tasks":
            for name in config.task_names():
                task = config.load_task(name)
                print(f"  {name:24} {len(task.train)} training, {len(task.unseen)} unseen prompts")
        else:
            from benchmarks.backbone.lora_sd import BACKBONES

            for name, place in BACKBONES.items():
                print(f"  {name:24} {'embedded' if name == 'emoji' else place}")
    return 0
