"""What a run says while it goes on: a bar on a terminal, a few plain lines elsewhere."""

import pytest

from benchmarks.harness import progress


def test_a_log_gets_a_line_each_tenth_of_the_budget(capsys: pytest.CaptureFixture[str]):
    with progress.bar("ddpo, seed 0") as update:
        for i in range(1, 1001):
            update(i / 1000, "reward -1.5")
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "ddpo, seed 0: starting" and len(lines) == 11
    assert lines[5].startswith("ddpo, seed 0: reward -1.5, 50% of the budget, ")
    assert "\x1b" not in captured.out and not captured.err


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress.bar("ddpo, seed 0") as update:
        update(0.5, "reward -1.5")
        update(1.0, "reward -1.2")
    shown = capsys.readouterr().out
    assert "\x1b" in shown and "reward -1.2" in shown and "100%" in shown


def test_of_several_processes_one_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "process", lambda: 1)
    with progress.bar("ddpo, seed 0") as update:
        update(1.0, "reward -1.5")
    assert capsys.readouterr().out == ""
