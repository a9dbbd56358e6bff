"""What a suite, an evaluation or a selection is asked for; apart, for ``--help`` without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which suite, for which backbone, and which part of it."""

    suite: str
    """A name (see list suites), or the TOML file of your own."""
    backbone: str = "emoji"
    """A name (see list backbones), a TOML file of your own, a diffusers folder or a hub id."""
    quick: bool = False
    """The same tables and figures from one seed and small budgets, with wide intervals."""
    only: tuple[str, ...] = ()
    """Names of tables and figures. Default: all of them."""
    plugin: tuple[Path, ...] = ()
    """Python files that register what the suite names, or hold its rewards. They are run."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to evaluate, and on what."""

    checkpoints: tuple[Path, ...] = ()
    """Cells, folders or .safetensors files; none: the base model alone."""
    mix: tuple[float, ...] = ()
    """One coefficient per checkpoint: evaluate the mix of their products B A."""
    sweep: int = 0
    """Evaluate this many even mixes, ends included, of two checkpoints or of one and the base."""
    parts: int = 0
    """Use the LoRA matrices only in the first, and only in the last, k of so many parts of the
    chain, for every k (the paper's early/late experiment)."""
    prompts: tuple[str, ...] = ()
    """Prompts, or one text file with a prompt per line. Default: the task's two splits."""
    images: int = 4
    """Pictures per prompt of --prompts."""
    task: str | None = None
    """Default: the first checkpoint's, or animals."""
    reward: str | None = None
    """Default: the first checkpoint's, or jpeg."""
    held_out: tuple[str, ...] | None = None
    """Rewards that are only reported. Default: the first checkpoint's, or the task's."""
    backbone: str | None = None
    """Default: the first checkpoint's, or emoji."""
    out: Path = Path("runs")
    """Where the evaluation's directory goes."""
    plugin: tuple[Path, ...] = ()
    """Python files that register rewards. They are run."""


@dataclass(frozen=True, kw_only=True)
class Selecting:
    """Which selections, of how many candidates, and on what."""

    selections: tuple[str, ...] = ("best-of-n", "das")
    """Names (see list selections)."""
    candidates: tuple[int, ...] = (2, 4, 8)
    """So many for each picture delivered; one row of the table for each number."""
    config: Path | None = None
    """A TOML file with a table per selection."""
    against: tuple[Path, ...] = ()
    """Directories of cells: after how many pictures would each of these have been cheaper?"""
    backbone: str = "emoji"
    """A name (see list backbones), a TOML file of your own, a diffusers folder or a hub id."""
    task: str | None = None
    """Prompts and splits: a name (see list tasks) or a TOML file. Default: the preset's."""
    reward: str = "jpeg"
    """What candidates are chosen by."""
    held_out: tuple[str, ...] | None = None
    """Rewards that are only reported. Default: the task's."""
    out: Path = Path("runs")
    """Where the record's directory goes."""
    plugin: tuple[Path, ...] = ()
    """Python files that register selections, rewards or tasks. They are run."""
