"""``python -m benchmarks.speed``: our training beside TRL's and beside the ideal loop.

Every row is one piece of work. Ours, TRL 0.23.1's trainer and the ideal loop (the bare passes that
the mathematics needs) do it in turns in one process, and the ratios are medians over the rounds.
Peak memory is that of all tensors made by one more step, weights not counted. Writes
``results/speed/speed.json`` and a table in ``results/speed/README.md``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from analysis.figures import FIGURES
from analysis.style import encoded
from benchmarks.api import Keep, UserError
from benchmarks.backbone import DTYPES
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.config import Precision
from benchmarks.distributed import start
from benchmarks.experiments.cells import has_compiler
from benchmarks.records.cell import write_json
from benchmarks.speed import growth, levers, memory, report, startup
from benchmarks.speed.clock import circumstances, in_turns, native_bf16, peak, ratio
from benchmarks.speed.ideal import Ideal
from benchmarks.speed.models import apart, made
from benchmarks.speed.ours import PROMPTS, Brightness, Ours
from benchmarks.speed.trl import Trainers


@dataclass(frozen=True, kw_only=True)
class Setting:
    """On what, and how often."""

    model: str
    batch: int
    steps: int
    guidance: float
    rounds: int
    compile: bool = False  # ours and the ideal loop; TRL's trainers have no such option


#: The larger model has fewer steps: its passes take seconds on two cores.
SETTINGS = (
    Setting(model="embedded", batch=8, steps=20, guidance=2.5, rounds=7),
    Setting(model="embedded", batch=8, steps=20, guidance=2.5, rounds=7, compile=True),
    Setting(model="sd15", batch=1, steps=4, guidance=7.5, rounds=5),
)
QUICK = (Setting(model="embedded", batch=4, steps=4, guidance=2.5, rounds=3),)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A row: what is done, and the ratios to be reached in each precision."""

    name: str
    method: str
    keep: Keep
    last: int | None = None  # K; None: all sampling steps
    ahead_of_trl: Mapping[Precision, float]
    above_ideal: float


WORK = (
    Work(
        name="AlignProp, full, recompute per step",
        method="alignprop",
        keep="latents",
        ahead_of_trl={"fp32": 1.15},
        above_ideal=1.06,
    ),
    Work(
        name="AlignProp, full, all kept",
        method="alignprop",
        keep="all",
        ahead_of_trl={"fp32": 1.6, "bf16": 1.75},
        above_ideal=1.06,
    ),
    Work(
        name="AlignProp, K=1",
        method="alignprop",
        keep="all",
        last=1,
        ahead_of_trl={"fp32": 1.25, "bf16": 1.5},
        above_ideal=1.06,
    ),
    Work(
        name="DDPO, a round and its update",
        method="ddpo",
        keep="all",
        ahead_of_trl={"fp32": 1.2},
        above_ideal=1.10,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    quick: bool = False
    """A minute's work on the embedded model, printed only."""
    growth: bool = False
    """Instead: how time and memory grow with sampling steps, batch and K."""
    levers: bool = False
    """Instead: what each lever gains."""
    json: bool = False
    """Print JSON."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results/speed")
    """Where the results go."""


class Stand:
    """One model in one precision, and everybody who trains it."""

    def __init__(self, setting: Setting, precision: Precision) -> None:
        pipeline = made(setting.model, DTYPES[precision])
        common: dict[str, Any] = {
            "batch": setting.batch,
            "steps": setting.steps,
            "guidance": setting.guidance,
        }
        device, theirs = start(), apart(pipeline)
        self.steps = setting.steps
        self.trl = Trainers(theirs, Brightness(), PROMPTS, precision=precision, **common)
        backbone = StableDiffusion(pipeline, Ledger(), device=device, compile=setting.compile)
        self.ours = Ours(backbone, **common)
        self.ideal = Ideal(backbone, setting.batch, setting.steps)

    def contenders(self, work: Work) -> dict[str, Callable[[], None]]:
        """Who does the work, by name."""
        if work.method == "ddpo":
            return {
                "ours": self.ours.ddpo(work.keep),
                "trl": self.trl.ddpo,
                "ideal": self.ideal.ddpo,
            }
        k, store = work.last or self.steps, work.keep == "all"
        return {
            "ours": self.ours.alignprop(k, work.keep),
            "trl": lambda: self.trl.alignprop(k),
            "ideal": lambda: self.ideal.alignprop(k, store),
        }


def measured(setting: Setting, precision: Precision, stand: Stand, work: Work) -> dict[str, Any]:
    """One row of the table."""
    contenders = stand.contenders(work)
    seconds = in_turns(contenders, setting.rounds)
    return {
        "work": work.name,
        "precision": precision,
        **asdict(setting),
        "seconds": seconds,
        "trl_over_ours": ratio(seconds, "trl", "ours"),
        "ours_over_ideal": ratio(seconds, "ours", "ideal"),
        "target_trl_over_ours": work.ahead_of_trl[precision],
        "target_ours_over_ideal": work.above_ideal,
        "peak_bytes": None
        if setting.compile  # which counts no storage of compiled code
        else {name: peak(contenders[name]) for name in ("ours", "trl")},
    }


def rows(settings: tuple[Setting, ...]) -> list[dict[str, Any]]:
    """All rows; those in bf16 say so where the machine cannot tell."""
    found: list[dict[str, Any]] = []
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for setting in settings:
        for precision in precisions:
            wanted = [work for work in WORK if precision in work.ahead_of_trl]
            why = ""
            if precision == "bf16" and not native_bf16():
                why = "not measurable on this machine (no native bf16)"
            elif setting.compile and not has_compiler():
                why = "not measurable on this machine (no C++ compiler)"
            if why:
                found += [
                    {"work": w.name, "precision": precision, **asdict(setting), "skipped": why}
                    for w in wanted
                ]
                continue
            stand = Stand(setting, precision)
            for work in wanted:
                print(f"{setting.model}, {precision}: {work.name}", file=sys.stderr)
                found.append(measured(setting, precision, stand, work))
    return found


def run(options: Options) -> dict[str, Any]:
    """What was asked for, with its circumstances."""
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    around, began = circumstances(), time.perf_counter()
    what: dict[str, Any]
    if options.growth:
        what = growth.measure(options.quick)
    elif options.levers:
        what = levers.measure(options.quick)
    else:
        what = {} if options.quick else {"startup": startup.measure()}
        what["rows"] = rows(QUICK if options.quick else SETTINGS)
        if not options.quick:
            what["memory"] = memory.measure()
    return {"machine": around, "took_seconds": round(time.perf_counter() - began), **what}


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input."""
    options = tyro.cli(Options, args=arguments, description=__doc__, prog="benchmarks.speed")
    name = "growth" if options.growth else "levers" if options.levers else "speed"
    try:
        result = run(options)
        if not options.quick:
            options.out.mkdir(parents=True, exist_ok=True)
            write_json(options.out / f"{name}.json", result)
            if options.growth:
                figure = FIGURES["growth"].make(result)
                (options.out / "growth.png").write_bytes(encoded(figure, "png"))
            report.write(options.out)
    except (UserError, OSError) as error:
        print(f"benchmarks.speed: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=1) if options.json else report.text(name, result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
