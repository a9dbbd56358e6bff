"""Pictures chosen instead of trained for: their rewards, and what each of them costs.

A selection trains nothing, so its compute is paid again for every picture it delivers. It draws the
pictures of the task's evaluation, from the same noise as the runs' own evaluations, and the ledger
counts every pass of all candidates. The record has the base model's row first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import registry
from benchmarks.api import Candidates, Context, Reward, Scale, UserError
from benchmarks.backbone import default_precision, load
from benchmarks.backbone.base import BaseBackbone
from benchmarks.compute.ledger import Ledger
from benchmarks.config import load_preset, load_task, override, read_toml
from benchmarks.distributed import gather, micro_batches, process, start
from benchmarks.experiments.cells import refuse_code
from benchmarks.experiments.checkpoints import judges
from benchmarks.experiments.requests import Selecting
from benchmarks.harness.evaluate import NOISE_SEED, evaluate, pictures
from benchmarks.harness.loop import price_reward
from benchmarks.harness.spec import optimised, reported
from benchmarks.records.cell import save_pictures, write_json
from benchmarks.streams import Streams

#: So many pictures are drawn at once.
BATCH = 16
BASE = "base model"
#: From prompts to their pictures, (B, 3, H, W) on the CPU.
Draw = Callable[[Sequence[str]], Tensor]


def configs(options: Selecting) -> list[tuple[str, Candidates]]:
    """Each selection with its configuration, once for each number of candidates."""
    evaluation = load_preset(options.backbone).evaluation
    tables = read_toml(options.config) if options.config else {}
    found = []
    for name in options.selections:
        config: Candidates = registry.selections.get(name).Config()
        config = override(config, tables.get(name, {}), f"{options.config}, table {name}")
        settings = {k: getattr(evaluation, k) for k in ("sampling_steps", "guidance")}
        for count in options.candidates:
            found.append((name, dataclasses.replace(config, candidates=count, **settings)))
    return found


def describe(options: Selecting) -> dict[str, Any]:
    """What identifies the record; its hash names the directory. Raises UserError."""
    preset = load_preset(options.backbone)
    task = load_task(options.task or preset.task)
    if options.held_out is not None:
        task = dataclasses.replace(task, held_out=options.held_out)
    named = [options.reward, *(options.held_out or ()), *map(str, options.plugin)]
    refuse_code([options.reward, *task.held_out], named, f"task {task.name}")
    names = reported(options.reward, task)
    return {
        "selections": [
            {
                "name": name,
                "config": dataclasses.asdict(config),
                "reward": optimised(
                    options.reward, registry.selections.get(name).needs, f"selection {name!r}"
                ),
            }
            for name, config in configs(options)
        ],
        "task": task.name,
        "reward": options.reward,
        "reported": names,
        "units": {n: registry.rewards.get(n).unit for n in names},
        "backbone": options.backbone,
        "prompts": task.evaluation_prompts(),
        "calibration": task.evaluation_prompts()["train"],
        "evaluation": dataclasses.asdict(preset.evaluation),
    }


def records(description: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """A row per selection and split, the base model's first; pictures in ``folder``."""
    backbone = load(
        description["backbone"], Ledger(), precision=default_precision(), device=start()
    )
    scorers, space, settings = judges(description, backbone)
    prompts: dict[str, list[str]] = description["prompts"]
    base: dict[str, Tensor] = {}

    def plain(asked: Sequence[str]) -> Tensor:
        return pictures(backbone, asked, settings.sampling_steps, settings.guidance, BATCH)

    arms = [{"name": BASE, "config": {"candidates": 1}}, *description["selections"]]
    for number, arm in enumerate(arms):
        draw: Draw = plain
        if "reward" in arm:
            draw = drawer(arm, scorers[arm["reward"]], backbone, description)
        drawn, costs = {}, {}
        for split, asked in prompts.items():
            drawn[split], costs[split] = paid(backbone.ledger, draw, asked)
        results = evaluate(backbone, prompts, scorers, space, settings, base or None, drawn=drawn)
        base = base or {result.split: result.features for result in results}
        for result in results:
            if process() == 0:
                save_pictures(folder / "images" / result.split / f"{number:06d}", result.images)
            head = {"name": arm["name"], "candidates": arm["config"]["candidates"]}
            yield head | {"per_picture": costs[result.split]} | result.record


def drawer(
    arm: dict[str, Any], reward: Reward, backbone: BaseBackbone, description: dict[str, Any]
) -> Draw:
    """What draws pictures of prompts, numbered from 0, by this selection."""
    calibration = description["calibration"]
    price_reward(backbone, reward, calibration[0])
    steps, guidance = (description["evaluation"][k] for k in ("sampling_steps", "guidance"))

    def scale() -> Scale:
        if reward.standardised:
            return Scale(mean=0.0, deviation=1.0)
        with backbone.ledger.paused(), torch.no_grad():
            images = pictures(backbone, calibration, steps, guidance).to(backbone.device)
            values = reward(images, calibration).double()
        deviation = float(values.std(correction=0))
        return Scale(mean=float(values.mean()), deviation=deviation or 1.0)

    cls = registry.selections.get(arm["name"])
    context = Context(
        backbone=backbone,
        reward=backbone.ledger.counted(reward),
        prompts=lambda step, count: [calibration[i % len(calibration)] for i in range(count)],
        streams=Streams(NOISE_SEED),
        scale=scale,
    )
    selection = cls(override(cls.Config(), arm["config"], arm["name"]), context)

    def draw(prompts: Sequence[str]) -> Tensor:
        parts = micro_batches(range(len(prompts)), BATCH)
        return gather([selection.draw([prompts[i] for i in part], part) for part in parts])

    return draw


def paid(ledger: Ledger, draw: Draw, prompts: Sequence[str]) -> tuple[Tensor, dict[str, float]]:
    """Pictures of the prompts, and what each of them cost: counters of the ledger."""
    before = ledger.totals()
    with ledger.across_processes():
        images = draw(prompts)
    after = ledger.totals()
    counted = ("flops", "nfe", "denoiser_backward", "images", "reward_queries", "reward_gradients")
    return images, {k: (after[k] - before[k]) / len(prompts) for k in counted}


def run(options: Selecting) -> Path:
    """Draw and score unless the same is there already; the record's directory.

    Raises UserError for what cannot be.
    """
    description = describe(options)
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:8]
    folder = options.out / f"select-{digest}"
    if not (folder / "selection.json").is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {options.out}: cannot be written ({error.strerror})") from error
        rows = list(records(description, folder))
        if process() == 0:
            write_json(folder / "selection.json", description | {"rows": rows})
    return folder
