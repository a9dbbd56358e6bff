"""The whole report: its files, its page in a browser, its speed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from synthetic_runs import GAIN, write_cell, write_evaluation

from analysis.preference import results
from analysis.report import write_report

FIGURES = (
    "reward_curve",
    "cost_curves",
    "overoptimisation",
    "pareto",
    "time_to_target",
    "progress",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for method in ("alignprop", "ddpo"):
        write_cell(folder, method, 0, images=True)
    write_cell(folder, "alignprop", 1)
    for kind in ("sweep", "parts"):
        write_evaluation(folder, kind)
    return folder


@pytest.fixture(scope="module")
def report(runs: Path) -> Path:
    out = runs.parent / "report"
    records = {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()}
    text = write_report(runs, out=out)
    assert {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()} == records
    assert (out / "table.md").read_text() == text and "missing: ddpo, seed 1" in text
    return out


def test_everything_is_there(report: Path) -> None:
    names = {path.name for path in report.iterdir()}
    figures = [*FIGURES, "evaluate-sweep-0", "evaluate-parts-0"]
    assert {f"{name}.{kind}" for name in figures for kind in ("png", "pdf")} <= names
    sheets = (
        "table",
        "measures",
        "costs",
        "matched_compute",
        "time_to_target",
        "progress",
        "pairs",
        "published",
    )
    assert {f"{name}.{kind}" for name in sheets for kind in ("md", "csv", "tex")} <= names
    grids = ["methods", "evaluate-sweep-0_pictures", "evaluate-parts-0_pictures"]
    grids += [f"{w}_{m}" for w in ("before_after", "along_training") for m in ("alignprop", "ddpo")]
    for name in grids:
        assert len(Image.open(report / f"{name}.png").convert("RGB").getcolors(2**20) or ()) > 20
    csv = pd.read_csv(report / "table.csv")
    assert csv["method"].tolist() == ["base model", "alignprop", "ddpo"]


def test_the_page_needs_no_network(report: Path) -> None:
    text = (report / "report.html").read_text()
    assert "http://" not in text and "https://" not in text and '<link rel="icon"' in text


def test_cells_without_evaluations_or_pictures(tmp_path: Path) -> None:
    (write_cell(tmp_path, "rwr", 0, finished=False) / "evals.jsonl").unlink()
    assert write_report(tmp_path).startswith("No evaluations yet.")
    shutil.rmtree(write_cell(tmp_path, "alignprop", 0, images=True) / "images" / "unseen")
    assert "| alignprop" in write_report(tmp_path)
    assert (tmp_path / "before_after_alignprop.png").exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("no chromium here (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"], timeout=600_000
        )
        yield running
        running.close()


def test_the_page_in_a_browser(report: Path, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    page.set_default_timeout(300_000)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((report / "report.html").as_uri())
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    shown = page.eval_on_selector_all("figure img", "all => all.map(i => i.naturalWidth)")
    assert len(shown) >= len(FIGURES) + 9 and min(shown) > 100

    names = "[...document.querySelector('table').tBodies[0].rows].map(r => r.cells[0].textContent)"
    page.locator("table").first.locator("th button").nth(2).click()  # reward on unseen prompts
    assert page.evaluate(names) == ["alignprop", "ddpo", "base model"]
    page.locator("table").first.locator("th button").nth(2).click()
    assert page.evaluate(names) == ["base model", "ddpo", "alignprop"]

    questions = json.loads(page.locator("#questions").text_content())
    pictures = json.loads(page.locator("#pictures").text_content())
    assert {(q["one"], q["two"]) for q in questions} == {
        ("base model", "alignprop"), ("base model", "ddpo"), ("alignprop", "ddpo")
    }  # fmt: skip
    by_picture = {pictures[q[side]]: q[name] for q in questions
                  for side, name in (("first", "one"), ("second", "two"))}  # fmt: skip
    assert not [n for n in GAIN if n in (page.locator("#test").text_content() or "")]  # blind
    expected = []
    for i in range(6):
        sources = page.eval_on_selector_all(".pair img", "all => all.map(i => i.src)")
        if i == 5:
            page.locator("[data-side=tie]").click()
            expected.append("tie")
        else:
            page.locator(".pair button").nth(i % 2).click()
            expected.append(by_picture[sources[i % 2]])
    with page.expect_download() as download:
        page.locator("#save").click()
    download.value.save_as(tmp_path / "preferences.json")
    answers = json.loads((tmp_path / "preferences.json").read_text())["answers"]
    assert [answer["choice"] for answer in answers] == expected
    assert all(a["choice"] in (a["one"], a["two"], "tie") for a in answers)
    sheet = results([tmp_path], [])
    assert sheet is not None
    on_page = page.locator("#result").text_content()
    for line in sheet.rows:
        first, second = str(line["preferred"]).split(" over ")
        result = line["win rate"]
        values = (result.value, result.low, result.high)  # type: ignore[union-attr]
        turned = tuple(1 - v for v in (values[0], values[2], values[1]))
        texts = [
            f"{a} over {b}: {v[0]:.3f} [{v[1]:.3f}, {v[2]:.3f}], n = {line['answers']}"
            for a, b, v in ((first, second, values), (second, first, turned))
        ]
        assert any(text in on_page for text in texts)
    assert not said
    page.close()


@pytest.mark.slow
def test_two_hundred_cells_in_thirty_seconds(tmp_path: Path) -> None:
    methods = [*GAIN, "draft-lv", "drtune", "dpok", "d3po"]
    for method in methods:
        for task in ("animals", "fruit", "cars", "tools", "birds"):
            for seed in range(5):
                write_cell(tmp_path, method, seed, task=task, images=seed == 0)
    start = time.perf_counter()
    assert write_report(tmp_path).count("| ddpo") == 5
    spent = time.perf_counter() - start
    print(f"200 cells: {spent:.1f} s")
    assert spent < 30
