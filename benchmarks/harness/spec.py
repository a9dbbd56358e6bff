"""One cell as data: everything that decides its results, and the file it is read from.

The file is ``cell.json`` in the cell's directory. It is written before anything runs, so that the
cell can be run, planned, launched and resumed from it; once begun it also says on what machine.
One file and not two, so that recorded cells can be run again as they are.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import content, registry
from benchmarks.api import EvaluationSettings, Index, Task, UserError, ZeroToOne
from benchmarks.compute.budget import FRACTIONS, Budget
from benchmarks.config import (
    OLD_KEEP,
    RULES,
    KeepChoice,
    Precision,
    backbone_content,
    build,
    check_task,
    override,
)

#: Fields of a Spec that stand under another name in its file.
RECORDED = {"task": "prompts"}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One cell: a method with its configuration on a task, with a reward, seed and budget."""

    method: str
    """The name it is registered under."""
    config: Any
    """An instance of the method's Config."""
    task: Task
    """The prompts themselves, so that a task's file may change later."""
    reward: str
    """What is optimised."""
    backbone: str
    """Whose weights are loaded: a name, a TOML file, a folder or a hub id."""
    seed: int
    """Of all random numbers."""
    budget: Budget
    """How much the cell may spend."""
    evaluation: EvaluationSettings
    """The preset's."""
    rank: Index = 4
    """Of the LoRA matrices; 0: all weights are trained."""
    precision: Precision
    """Of the frozen weights."""
    keep: KeepChoice = "auto"
    """What is kept for the backward pass."""
    compile: bool = False
    """Whether the denoiser goes through ``torch.compile``."""
    placebo: bool = False
    """Whether the method is paid without meaning, see ``harness/placebo.py``."""
    evaluate_at: tuple[ZeroToOne, ...] = FRACTIONS
    """Shares of the budget, ascending, from 0 (the base model) to 1."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each value comes from, by dotted name; no part of the cell's identity."""

    @property
    def train_reward(self) -> str:
        """The reward the method optimises: a gradient method gets the differentiable stand-in.

        Raises UserError if it needs a gradient and there is none.
        """
        needs = registry.methods.get(self.method).needs
        return optimised(self.reward, needs, f"method {self.method!r}")

    @property
    def reported(self) -> list[str]:
        """The rewards in every evaluation of this cell."""
        return reported(self.reward, self.task)

    def content(self) -> dict[str, str]:
        """Digests of the code and weights that its results depend on and no name says.

        Of what is not this checkout's, see ``benchmarks.content``.
        """
        rewards = {*self.reported, self.train_reward, self.evaluation.features}
        return named_content(self.backbone, rewards, self.method)

    def description(self) -> dict[str, Any]:
        """What identifies the cell: its hash names the directory.

        Raises UserError if the method, a reward or what they need of each other is not there.
        """
        prompts = dataclasses.asdict(self.task)
        if not self.task.guard:
            del prompts["guard"]
        optional: dict[str, Any] = {
            "compile": self.compile,
            "placebo": self.placebo,
            "evaluate_at": self.evaluate_at,
        }
        optional["content"] = self.content()
        usual = {"compile": False, "placebo": False, "evaluate_at": FRACTIONS, "content": {}}
        return {
            "rules": RULES,
            "method": self.method,
            "task": self.task.name,
            "reward": self.reward,
            "train_reward": self.train_reward,
            "reported": self.reported,
            "units": {n: registry.rewards.get(n).unit for n in self.reported},
            "details": {n: registry.rewards.get(n).recorded for n in self.reported},
            "backbone": self.backbone,
            "seed": self.seed,
            "budget": dataclasses.asdict(self.budget),
            "config": dataclasses.asdict(self.config),
            "evaluation": dataclasses.asdict(self.evaluation),
            "rank": self.rank,
            "memory": OLD_KEEP.get(self.keep, self.keep),
            "precision": self.precision,
            "prompts": prompts,
            "versions": {n: version(n) for n in ("torch", "diffusers", "peft", "transformers")},
            "machine": platform.machine(),
        } | {key: value for key, value in optional.items() if value != usual[key]}

    @classmethod
    def read(cls, path: Path) -> Spec:
        """The cell of a ``cell.json``; raises UserError for anything else."""
        try:
            record = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error})") from error
        return cls.from_record(record, str(path))

    @classmethod
    def from_record(cls, record: Any, where: str) -> Spec:
        """The cell that a ``cell.json`` describes; raises UserError that names ``where``."""
        if not isinstance(record, dict):
            raise UserError(f"{where}: no cell, but {record!r:.50}")
        if record.get("rules", RULES) != RULES:
            raise UserError(
                f"{where}: a cell of rules version {record['rules']}, here it is {RULES}; the "
                "results would differ"
            )
        names = {f.name: RECORDED.get(f.name, f.name) for f in dataclasses.fields(cls)}
        values = {name: record[key] for name, key in names.items() if key in record}
        if "memory" in record:  # what is kept had other words
            new = {old: keep for keep, old in OLD_KEEP.items()}
            values["keep"] = new.get(record["memory"], record["memory"])
        if isinstance(values.get("method"), str):
            config = registry.methods.get(values["method"]).Config()
            values["config"] = override(config, values.get("config", {}), f"{where}: config")
        spec = cls.made(values, where)
        before, now = record.get("content", {}), spec.content()
        changed = sorted(name for name, digest in now.items() if before.get(name) != digest)
        if changed:
            raise UserError(
                f"{where}: changed since: {', '.join(changed)}; the results would differ. Give the "
                "command that made it again, or undo the change"
            )
        return spec

    @classmethod
    def made(cls, values: Mapping[str, Any], where: str) -> Spec:
        """The cell with these values. Raises UserError for what cannot be one."""
        spec = build(cls, values, where)
        check_task(spec.task, f"{where}: prompts")
        shares = spec.evaluate_at
        if not shares or list(shares) != sorted(set(shares)) or (shares[0], shares[-1]) != (0, 1):
            raise UserError(f"{where}: evaluate_at must ascend from 0 to 1, not {list(shares)}")
        return spec


def optimised(reward: str, needs: frozenset[str], who: str) -> str:
    """The reward that ``who`` is paid by: the differentiable stand-in if it ``needs`` a gradient.

    Raises UserError if there is none, or if the reward is for evaluation only.
    """
    cls = registry.rewards.get(reward)
    if not cls.optimisable:
        usable = [n for n in registry.rewards.names() if registry.rewards.get(n).optimisable]
        raise UserError(
            f"reward {reward!r} is for evaluation only; optimise one of {', '.join(usable)}"
        )
    if "reward_grad" not in needs or cls.differentiable:
        return reward
    stand_in: str | None = cls.stand_in
    if stand_in is None:
        usable = [n for n in registry.rewards.names() if _differentiable(n)]
        raise UserError(
            f"{who} needs the gradient of the reward, and {reward!r} is a black box; use one of "
            f"{', '.join(usable)}, or a method that needs its value only: "
            f"{', '.join(_for_black_boxes())}"
        )
    return stand_in


def _for_black_boxes() -> list[str]:
    """Methods that need the reward's value only, variants aside."""
    known = registry.methods
    names = [name for name in known.names() if name not in known.variants]
    return [name for name in names if "reward_grad" not in known.get(name).needs]


def named_content(backbone: str, rewards: Iterable[str], method: str | None) -> dict[str, str]:
    """By what these things are called, the digest of each that has one."""
    found = {f"backbone {backbone}": backbone_content(backbone)}
    found |= {f"reward {name}": registry.rewards.get(name).content() for name in sorted(rewards)}
    if method:
        found[f"method {method}"] = content.code(registry.methods.get(method))
    return {name: digest for name, digest in found.items() if digest}


def reported(reward: str, task: Task) -> list[str]:
    """The rewards in every evaluation: the optimised, its stand-in, the held-out, the guard."""
    stand_in = registry.rewards.get(reward).stand_in
    return list(
        dict.fromkeys([reward, *([stand_in] if stand_in else []), *task.held_out, *task.guard])
    )


def _differentiable(name: str) -> bool:
    return bool(registry.rewards.get(name).differentiable)
