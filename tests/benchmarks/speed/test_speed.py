"""The command measures, writes and says what it leaves out."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.api import UserError
from benchmarks.speed import __main__ as speed
from benchmarks.speed import growth, levers, memory, models, startup

KEPT = "forward passes of sampling kept (DDPO)"


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


def test_the_small_shape_differs_in_its_size_only():
    unet = models.sd15_configs()["unet"]
    assert unet["sample_size"] == models.PIXELS // 8
    assert unet["block_out_channels"] == [320, 640, 1280, 1280]
