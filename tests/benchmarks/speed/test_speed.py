"""Fast paths give what plain ones give, and are faster; the ideal loop does the same passes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import tiny_pipeline

from benchmarks.api import UserError
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import KINDS, Ledger
from benchmarks.compute.ledger import passes as count
from benchmarks.speed import __main__ as speed
from benchmarks.speed import clock, growth, levers, memory, models, startup
from benchmarks.speed.ideal import Ideal
from benchmarks.speed.ours import Ours
from benchmarks.streams import Streams

BATCH, STEPS = 2, 4
KEPT = "forward passes of sampling kept (DDPO)"


@pytest.fixture
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """All measurements on the tiny pipeline."""
    for name in models.MODELS:
        monkeypatch.setitem(models.MODELS, name, tiny_pipeline)


def test_every_lever_leaves_the_gradient_as_it_is(tiny_models, gradients, monkeypatch, compared):
    generator = Streams.generator
    monkeypatch.setattr(  # the same noise in every step
        Streams, "generator", lambda self, purpose, step, i=0: generator(self, purpose, 0, i)
    )
    pairs = levers.pairs(BATCH, STEPS) | levers.large() | levers.half(BATCH, STEPS)
    assert len(pairs) == 21
    for name, (fast, plain) in pairs.items():
        if "not done" not in name:
            gradients.clear()
            fast()
            plain()
            compared(name, *gradients, 0.1 if "bf16" in name else 1e-4)


PASSES = {
    "full, recomputed": ((STEPS, "latents"), lambda ideal: ideal.alignprop(STEPS, False)),
    "full, stored": ((STEPS, "all"), lambda ideal: ideal.alignprop(STEPS, True)),
    "K=1": ((1, "all"), lambda ideal: ideal.alignprop(1, True)),
    "DDPO": (None, lambda ideal: ideal.ddpo()),
}


@pytest.mark.parametrize("what", PASSES)
def test_the_ideal_loop_does_the_passes_of_ours(what: str):
    backbone = StableDiffusion(tiny_pipeline(), Ledger())
    ours = Ours(backbone, batch=BATCH, steps=STEPS, guidance=2.5)
    arguments, bare = PASSES[what]
    run = ours.alignprop(*arguments) if arguments else ours.ddpo("all")
    ideal = Ideal(backbone, BATCH, STEPS)
    assert passes(backbone, lambda: bare(ideal)) == passes(backbone, run)


def passes(backbone: StableDiffusion, run: Callable[[], None]) -> dict[str, int]:
    """Samples through U-Net and decoder, forward and backward, as the ledger counts them."""
    counts = backbone.ledger.counts
    counts.clear()
    run()
    forward = count(counts, "denoiser", "forward", "recompute")
    others = [k for k in KINDS if k.part == "decoder" or k.name.startswith("denoiser_backward")]
    return {"denoiser": forward} | {kind.name: counts[kind] for kind in others}


def test_what_saves_a_third_of_the_passes_saves_time(tiny_models):
    """A third is saved, so 1.33 is expected."""
    pairs = levers.pairs(BATCH, STEPS)
    for name in ("all kept instead of latents (AlignProp, full)", KEPT):
        fast, plain = pairs[name]
        seconds = clock.in_turns({"fast": fast, "plain": plain}, 5)
        assert clock.ratio(seconds, "plain", "fast")["median"] > 1.05, name


def test_ratios_are_taken_within_rounds():
    seconds = {"one": [2.0, 30.0, 4.0], "other": [1.0, 10.0, 4.0]}
    assert clock.ratio(seconds, "one", "other") == {"median": 2.0, "least": 1.0, "most": 3.0}


@pytest.mark.filterwarnings("ignore")
def test_the_command(tiny_models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    pytest.importorskip("trl", "0.23")
    small = speed.Setting(model="embedded", batch=2, steps=2, guidance=2.5, rounds=2)
    monkeypatch.setattr(speed, "SETTINGS", (small,))
    monkeypatch.setattr(speed, "native_bf16", lambda: True)
    check = {"pixels": 64, "steps": 4, "keep": {}}
    planned = {"target_bytes": 7.5e9, "planned_bytes": {"blocks": 4e9}, "check": check}
    monkeypatch.setattr(memory, "measure", lambda: planned)
    waits = {"seconds": {"--help": [0.3]}, "target_seconds": startup.TARGETS}
    monkeypatch.setattr(startup, "measure", lambda: waits)
    assert speed.main(["--out", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["rows"]) == 6
    for row in result["rows"]:
        assert row["trl_over_ours"]["median"] > 0 and row["ours_over_ideal"]["median"] > 0
        assert row["peak_bytes"]["ours"] > 0 and row["peak_bytes"]["trl"] > 0
    assert json.loads((tmp_path / "speed.json").read_text()) == result
    written = (tmp_path / "README.md").read_text()
    assert "DDPO, a round and its update, fp32" in written
    assert "--help 0.30 s (at most 0.5 s)" in written


#: Records a step after a fifth of a second and goes on; or fails before.
JOB = """
import pathlib, sys, time
if "--out" in sys.argv:
    time.sleep(0.2)
    cell = pathlib.Path(sys.argv[-1]) / "cell"
    cell.mkdir()
    {then}
    time.sleep(60)
"""


def test_waiting_ends_with_the_first_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "job.py"
    monkeypatch.setattr(startup, "COMMAND", [sys.executable, str(script)])
    script.write_text(JOB.format(then="(cell / 'steps.jsonl').write_text('{}')"))
    seconds = startup.measure()["seconds"]
    assert all(len(waits) == startup.ROUNDS for waits in seconds.values())
    assert 0.2 < min(seconds["first optimizer step"]) < 30
    script.write_text(JOB.format(then="sys.exit(1)"))
    with pytest.raises(UserError, match="ended before its first optimizer step"):
        startup.measure()


def test_half_precision_that_is_emulated_is_not_timed(tiny_models, monkeypatch):
    pytest.importorskip("trl", "0.23")
    monkeypatch.setattr(speed, "native_bf16", lambda: False)
    monkeypatch.setattr(speed, "WORK", [w for w in speed.WORK if "bf16" in w.ahead_of_trl])
    monkeypatch.setattr(speed, "measured", lambda *arguments: {})
    skipped = [row for row in speed.rows(speed.QUICK) if row]
    assert [row["precision"] for row in skipped] == ["bf16", "bf16"]
    assert all("no native bf16" in row["skipped"] for row in skipped)


def test_growth_and_levers_are_written(tiny_models, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(growth, "STEPS", (2, 4, 8))
    monkeypatch.setattr(growth, "BATCHES", (2, 4))
    monkeypatch.setattr(growth, "LAST", (1, 2))
    monkeypatch.setattr(growth, "ROUNDS", 1)

    def work() -> None:
        torch.ones(3).exp()

    for name in ("pairs", "large", "half", "compiled"):
        monkeypatch.setattr(levers, name, lambda *_: {KEPT: (work, work)})
    for part in ("--growth", "--levers"):
        assert speed.main([part, "--out", str(tmp_path)]) == 0
    points = json.loads((tmp_path / "growth.json").read_text())["growth"]["sampling steps"]
    assert max(points["peak_bytes"]) < 1.1 * min(points["peak_bytes"])
    assert (tmp_path / "growth.png").stat().st_size > 0
    assert KEPT in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_the_planner_agrees_with_a_model_of_the_shape_of_sd15():
    for found in memory.check(steps=2)["keep"].values():
        assert found["planned_bytes"] == pytest.approx(found["measured_bytes"], rel=0.1)


def test_the_small_shape_differs_in_its_size_only():
    unet = models.sd15_configs()["unet"]
    assert unet["sample_size"] == models.PIXELS // 8
    assert unet["block_out_channels"] == [320, 640, 1280, 1280]
