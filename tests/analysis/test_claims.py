"""Claims on runs made up for them: verdicts, families, placebos, guards."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from synthetic_runs import made, write_cell, write_evaluation

from analysis import claims, placebo
from analysis.collect import Comparison, collect
from analysis.statistics import Estimate


def data(comparison: Comparison | None = None, evaluated: Path | None = None) -> claims.Data:
    others = collect(evaluated).evaluated if evaluated else []
    return claims.Data(
        rewards=["jpeg", "alignment"],
        comparisons=[comparison] if comparison else [],
        evaluated=others,
        memory={"LoRA, every sampling step stored": 512e9 / 1.2, "other": 512e9 / 4},
    )


def asked(measure: str, *arms: str, **more: object) -> claims.Claim:
    return {"measure": measure, "arms": arms, "split": "train", **more}


def test_claims_hold_fail_or_stay_undecided(tmp_path: Path) -> None:
    found = data(made(tmp_path, lambda p: -2 + 4 * p, lambda p: -2 + p, 5, spread=0.1))

    def said(measure: str, *arms: str, **more: object) -> claims.Finding:
        [[finding]] = claims.family([asked(measure, *arms, **more)], found)
        return finding

    better = said("difference", "alignprop", "ddpo")
    assert better.value.value == pytest.approx(3.0, abs=0.05) and better.verdict == "holds"
    assert said("difference", "ddpo", "alignprop").verdict == "fails"
    assert said("difference", "ddpo", "ddpo").verdict == "undecided"
    assert said("gain", "alignprop").value.value == pytest.approx(4.0, abs=0.05)
    fast = said("speedup", "alignprop", "ddpo")
    assert fast.verdict == "holds" and fast.what.startswith("jpeg, training: TFLOP")
    assert said("speedup", "alignprop", "ddpo", times=25).verdict == "fails"
    assert claims.findings(asked("gain", "rwr"), found) == []


def test_queries_flops_and_seconds_are_one_finding(tmp_path: Path) -> None:
    found = data(made(tmp_path, lambda p: -2 + 4 * p, lambda p: -2 + p, 5))
    assert len(claims.findings(asked("speedup", "alignprop", "ddpo"), found)) == 1


def weak(runs: Path) -> Comparison:
    """Ours are ahead with p between 0.01 and 0.05."""
    return made(runs, lambda p: -1.5 + 0.1 * p, lambda p: -1.6 + 0.1 * p, 5, spread=0.035)


def test_a_finding_is_corrected_for_those_beside_it_unless_primary(tmp_path: Path) -> None:
    found = data(weak(tmp_path))
    claim, other = asked("difference", "alignprop", "ddpo"), asked("difference", "ddpo", "ddpo")
    [[alone]] = claims.family([claim], found)
    assert 0.01 < alone.p < 0.05 and alone.verdict == "holds"
    [[among], *_] = claims.family([claim, *[other] * 4], found)
    assert among.p == alone.p and among.corrected == pytest.approx(5 * alone.p)
    assert among.verdict == "undecided"
    first = {"claim": 1, "reward": "jpeg"}
    [[primary], *_] = claims.family([claim, *[other] * 4], found, first)
    assert primary.primary and primary.verdict == "holds"
    assert "(primary)" in str(claims.sheet([("", primary)]).rows[0]["p"])


def shuffled(runs: Path, seed: int, gain: float) -> str:
    """A placebo of ddpo that ends so far above the base model."""
    cell = write_cell(runs / "placebo", "ddpo", seed)
    lines = [json.loads(line) for line in (cell / "evals.jsonl").read_text().splitlines()]
    for line in lines:
        line["rewards"]["shuffled:jpeg"] = 99.0
        for picture in line["per_image"]:
            noise = 0.01 * seed * line["fraction"]
            change = gain * line["fraction"] + noise - line["rewards"]["jpeg"]
            picture["rewards"]["jpeg"] += change + lines[0]["rewards"]["jpeg"]
        line["rewards"]["jpeg"] = lines[0]["rewards"]["jpeg"] + gain * line["fraction"]
    info = json.loads((cell / "cell.json").read_text())
    info |= {"reward": "shuffled:jpeg", "train_reward": "shuffled:jpeg"}
    info["reported"] = ["shuffled:jpeg", "jpeg", "alignment"]
    (cell / "cell.json").write_text(json.dumps(info))
    (cell / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return cell.rename(runs / f"placebo-{seed}").name


@pytest.mark.parametrize(("gain", "said"), [(0.1, "yes"), (0.7, "not shown"), (3.0, "no")])
def test_a_gain_is_learnt_only_above_the_placebo(tmp_path: Path, gain: float, said: str) -> None:
    for seed in range(5):
        write_cell(tmp_path, "ddpo", seed)
    for seed in range(3):
        shuffled(tmp_path, seed, gain)
    [comparison] = collect(tmp_path).comparisons
    assert comparison.reward == "jpeg" and comparison.labels == ["ddpo", "ddpo (shuffled)"]
    assert comparison.placebo("ddpo") == "ddpo (shuffled)"
    [[found]] = claims.family([asked("gain", "ddpo")], data(comparison))
    assert found.verdict == "holds" and found.learnt == said
    assert placebo.rose(comparison, "ddpo", "train") is (said == "yes")


def test_a_slow_method_that_is_not_above_its_placebo_gives_no_ratio(tmp_path: Path) -> None:
    for seed in range(5):
        write_cell(tmp_path, "ddpo", seed)
        write_cell(tmp_path, "alignprop", seed)
    for seed in range(3):
        shuffled(tmp_path, seed, 0.7)
    [comparison] = collect(tmp_path).comparisons
    [[found]] = claims.family([asked("speedup", "alignprop", "ddpo")], data(comparison))
    assert found.verdict == "undecided: ddpo is not above its placebo"
    assert claims.sheet([("", found)]).rows[0]["value"] == "-"


def test_a_placebo_has_to_report_the_reward_itself(tmp_path: Path) -> None:
    write_cell(tmp_path, "ddpo", 0)
    name = shuffled(tmp_path, 0, 0.1)
    info = json.loads((tmp_path / name / "cell.json").read_text())
    info["reported"] = ["shuffled:jpeg", "alignment"]
    (tmp_path / name / "cell.json").write_text(json.dumps(info))
    assert any("has to report jpeg itself" in note.text for note in collect(tmp_path).notes)


def test_what_the_guard_does_not_keep_does_not_win(tmp_path: Path) -> None:
    """The winner's later checkpoints are not kept: it ends with the last one that is."""
    found = made(tmp_path, lambda p: -2 + 4 * p, lambda p: -2 + p, 5)
    evals = found.evals
    spoilt = (evals["label"] == "alignprop") & (evals["fraction"] > 0.15)
    evals["kept"] = (~spoilt).astype(object)
    [[finding]] = claims.family([asked("difference", "alignprop", "ddpo")], data(found))
    assert finding.value.value == pytest.approx(0.4 - 1) and finding.verdict == "fails"


def test_claims_about_checkpoints(tmp_path: Path) -> None:
    for kind in ("sweep", "parts"):
        write_evaluation(tmp_path / kind, kind)
    claim = {"measure": "soup", "at": 0.5}
    (soup, _, other, _) = claims.findings(claim, data(None, tmp_path / "sweep"))
    assert soup.value.value == pytest.approx(0.25) and soup.verdict.startswith("holds")
    assert other.value.value == pytest.approx(-0.025) and other.verdict.startswith("fails")


def test_memory_is_within_a_factor_of_what_was_published() -> None:
    claim = {"measure": "memory", "published": ["memory, with LoRA"]}
    near, far = (
        claims.findings({**claim, "rung": rung}, data())[0].verdict
        for rung in ("LoRA, every sampling step stored", "other")
    )
    assert near == "within a factor of 1.5" and far == "not within a factor of 1.5"


def test_findings_in_short() -> None:
    value = Estimate(value=1.0, seeds=5)
    words = ["holds", "undecided: ddpo did not rise", "holds", "holds, without an interval"]
    found = [claims.Finding(what="jpeg", value=value, said=word) for word in words]
    assert (
        claims.in_short(found)
        == "2 of 4 holds; 1 of 4 undecided; 1 of 4 holds, without an interval"
    )
    assert claims.in_short([]) == "no runs yet" and math.isnan(found[0].p)
