"""Evaluate LoRA checkpoints, their mixes, or the base model.

A checkpoint is a cell, a folder, or a .safetensors file of a denoiser's LoRA as diffusers loads it.
All pictures start from the noise of the runs' own evaluations. Each evaluation leaves a directory
with its records and pictures, which the report draws.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks import cut_prompts, registry
from benchmarks.api import EvaluationSettings, Reward, Task, UserError
from benchmarks.backbone import default_precision, load, lora_file
from benchmarks.backbone.base import BaseBackbone
from benchmarks.compute.ledger import Ledger
from benchmarks.config import RULES, build, check_task, load_preset, load_task
from benchmarks.distributed import start
from benchmarks.experiments import soup
from benchmarks.experiments.cells import refuse_code
from benchmarks.experiments.requests import Request
from benchmarks.harness.evaluate import calibrate, evaluate, pictures
from benchmarks.harness.spec import named_content, reported
from benchmarks.records.cell import refuse_links, save_pictures, write_json


@dataclass(frozen=True)
class Candidate:
    """Weights to evaluate: coefficients of the checkpoints, in a part of the chain."""

    name: str
    coefficients: tuple[float, ...]
    part: tuple[float, float] = (0.0, 1.0)


def candidates(options: Request) -> list[Candidate]:
    """What to evaluate after the base model. Raises UserError for what does not go together."""
    count = len(options.checkpoints)
    if sum(map(bool, (options.mix, options.sweep, options.parts))) > 1:
        raise UserError("evaluate: give one of --mix, --sweep and --parts")
    if options.mix and len(options.mix) != count:
        raise UserError(f"--mix: {len(options.mix)} coefficients for {count} checkpoints")
    if options.sweep and (count not in (1, 2) or options.sweep < 2):
        raise UserError("--sweep: give one or two checkpoints, and at least 2 mixes")
    if options.parts and (count != 1 or options.parts < 2):
        raise UserError("--parts: give one checkpoint, and at least 2 parts")
    if options.mix:
        return [Candidate("mix", options.mix)]
    if options.sweep:
        shares = [i / (options.sweep - 1) for i in range(options.sweep)]
        return [Candidate(f"{c:.3g}", (c,) if count == 1 else (1 - c, c)) for c in shares]
    if options.parts:
        shares = [i / options.parts for i in range(1, options.parts)]
        first = [Candidate(f"first {c:.0%}", (1.0,), (0.0, c)) for c in shares]
        last = [Candidate(f"last {1 - c:.0%}", (1.0,), (c, 1.0)) for c in shares]
        return [*first, *last, Candidate("whole chain", (1.0,))]
    units = [tuple(float(i == k) for i in range(count)) for k in range(count)]
    names = [str(path) for path in options.checkpoints]
    return [Candidate(name, unit) for name, unit in zip(names, units, strict=True)]


def describe(options: Request, chosen: list[Candidate]) -> dict[str, Any]:
    """What identifies the evaluation; its hash names the directory."""
    cells = [_cell(path) for path in options.checkpoints]
    first: dict[str, Any] = cells[0] if cells else {}
    backbone = options.backbone or first.get("backbone", "emoji")
    reward = options.reward or first.get("reward", "jpeg")
    preset = load_preset(backbone)
    if options.task is None and "prompts" in first:  # also where its file is no longer there
        task = build(Task, first["prompts"], "cell.json: prompts")
        check_task(task, "cell.json: prompts")
    else:
        task = load_task(options.task or preset.task)
    if options.held_out is not None:
        task = dataclasses.replace(task, held_out=options.held_out)
    named = [options.reward or "", *(options.held_out or ()), *map(str, options.plugin)]
    rewards = [reward, *task.held_out, preset.evaluation.features]
    refuse_code(rewards, named, "cell.json or task")
    splits = {"prompts": _own_prompts(options)} if options.prompts else task.evaluation_prompts()
    names = reported(reward, task)
    return {
        "kind": next((k for k in ("mix", "sweep", "parts") if getattr(options, k)), "checkpoints"),
        "checkpoints": [
            {"path": str(path), "sha256": _digest(path), "method": cell.get("method")}
            | {"seed": cell.get("seed"), "reward": cell.get("reward")}
            for path, cell in zip(options.checkpoints, cells, strict=True)
        ],
        "candidates": [
            {"name": c.name, "coefficients": c.coefficients, "part": c.part} for c in chosen
        ],
        "task": None if options.prompts else task.name,
        "reward": reward,
        "reported": names,
        "units": {n: registry.rewards.get(n).unit for n in names},
        "details": {n: registry.rewards.get(n).recorded for n in names},
        "content": named_content(backbone, {*names, preset.evaluation.features}, None),
        "rules": RULES,
        "precision": default_precision(),
        "backbone": backbone,
        "prompts": splits,
        "calibration": task.evaluation_prompts()["train"],
        "evaluation": dataclasses.asdict(preset.evaluation),
    }


def _cell(path: Path) -> dict[str, Any]:
    """The cell a checkpoint belongs to, if it does."""
    file = lora_file.weights_file(path).parent / "cell.json"
    try:
        record = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise UserError(f"{file}: no cell, but {record!r:.50}")
    for key in ("backbone", "reward"):
        if not isinstance(record.get(key, ""), str):
            raise UserError(f"{file}: {key} must be str, not {record[key]!r}")
    return record


def _digest(path: Path) -> str:
    return hashlib.sha256(lora_file.weights_file(path).read_bytes()).hexdigest()


def _own_prompts(options: Request) -> list[str]:
    prompts = list(options.prompts)
    if len(prompts) == 1 and prompts[0].endswith(".txt"):
        try:
            prompts = Path(prompts[0]).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts {prompts[0]}: cannot be read ({error})") from error
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts or options.images < 1:
        raise UserError("--prompts: give at least one prompt, and at least one picture for each")
    return [prompt for prompt in dict.fromkeys(prompts) for _ in range(options.images)]


def records(
    description: dict[str, Any], paths: tuple[Path, ...], chosen: list[Candidate], folder: Path
) -> Iterator[dict[str, Any]]:
    """Evaluate the base model and each candidate; a record per split, pictures in ``folder``."""
    states = [lora_file.read(path) for path in paths]
    size = sum(map(soup.rank, states)) or 1
    device = start()
    model = load(
        description["backbone"], Ledger(), precision=default_precision(), rank=size, device=device
    )
    first = model.weights()
    for path, state in zip(paths, states, strict=True):
        wrong = [k for k in state if k not in first or _side(k, state[k]) != _side(k, first[k])]
        if wrong:
            raise UserError(f"{path}: {wrong[0]} does not fit backbone {description['backbone']!r}")
    scorers, space, settings = judges(description, model)
    readers: dict[str, cut_prompts.Reader] = {"the model": model}
    readers |= {f"reward {name}": scorer for name, scorer in scorers.items()}
    texts = [prompt for split in description["prompts"].values() for prompt in split]
    if cut := cut_prompts.warned(readers, texts):
        write_json(folder / "cut_prompts.json", cut)
    base: dict[str, Tensor] = {}
    for number, candidate in enumerate([Candidate("base model", ()), *chosen]):
        model.load_weights(
            soup.mix(states, candidate.coefficients, size) if candidate.coefficients else first
        )
        results = evaluate(
            model, description["prompts"], scorers, space, settings, base or None, candidate.part
        )
        base = base or {result.split: result.features for result in results}
        for result in results:
            save_pictures(folder / "images" / result.split / f"{number:06d}", result.images)
            head = {"candidate": number, "name": candidate.name, "part": candidate.part}
            yield head | {"coefficients": candidate.coefficients} | result.record


def judges(
    description: dict[str, Any], model: BaseBackbone
) -> tuple[dict[str, Reward], Reward, EvaluationSettings]:
    """The rewards that score pictures, calibrated; the space they are compared in; the settings."""
    scorers = {name: registry.rewards.get(name)(model.device) for name in description["reported"]}
    settings = EvaluationSettings(**description["evaluation"])
    space = registry.rewards.get(settings.features)(model.device)
    shown = description["calibration"]

    def draw() -> Tensor:
        drawn = pictures(model, shown, settings.sampling_steps, settings.guidance)
        return drawn.to(model.device)

    with model.ledger.paused():
        calibrate(scorers, shown, draw)
    return scorers, space, settings


def _side(key: str, matrix: Tensor) -> int:
    """The side of a LoRA matrix that is not its rank."""
    return matrix.shape[1] if key.endswith(lora_file.A) else matrix.shape[0]


def run(options: Request, folder: Path | None = None) -> Path:
    """Evaluate unless it is there already; ``folder``, or the one named by what is evaluated.

    Raises UserError for what cannot be evaluated.
    """
    chosen = candidates(options)
    description = describe(options, chosen)
    if folder is None:
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:8]
        folder = options.out / f"evaluate-{description['kind']}-{digest}"
    if not (folder / "evaluation.json").is_file():
        refuse_links(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {options.out}: cannot be written ({error.strerror})") from error
        rows = list(records(description, options.checkpoints, chosen, folder))
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "evals.jsonl").write_text(text, "utf-8")
        write_json(folder / "evaluation.json", description)
    return folder
