"""The reference is what the code says, and says all of it."""

import dataclasses
import re

import pytest

from benchmarks import api, registry
from benchmarks.commands import reference


@pytest.fixture(scope="module")
def text() -> str:
    return reference.text()


def test_it_is_current(text: str):
    assert reference.FILE.read_text("utf-8") == text, "python run_benchmark.py reference"


def rows_of(cls: type, text: str) -> dict[str, str]:
    """What the page says of each member."""
    section = text.partition(f"### {cls.__name__}\n")[2].partition("\n### ")[0]
    return dict(re.findall(r"^\| `(\w+)(?:\(.*\))?` \| (.*) \|$", section, re.MULTILINE))


@pytest.mark.parametrize("cls", [api.Context, api.StepResult, api.Task, api.Preset])
def test_every_field_of_the_contract_is_explained(cls: type, text: str):
    rows = rows_of(cls, text)
    for field in dataclasses.fields(cls):
        assert len(rows[field.name].split()) >= 2, field.name


@pytest.mark.parametrize("cls", [api.Backbone, api.Sampler, api.Method, api.Reward])
def test_every_member_of_the_contract_is_explained(cls: type, text: str):
    members = {*vars(cls), *cls.__annotations__}
    assert {name for name in members if not name.startswith("_")} <= rows_of(cls, text).keys()


def test_class_variables_of_rewards_and_methods_are_explained(text: str):
    for name in ("unit", "reference", "differentiable", "stand_in", "calibrates", "needs"):
        assert re.search(rf"^\| `{name}` \| \S.* \|$", text, re.MULTILINE), name


def test_every_verb_has_its_options(text: str):
    for verb in ("run", "suite", "plan", "search", "report"):
        assert f"### {verb}\n" in text
    assert text.count("`--launch`") == 4  # of run, run FILE, suite and search


def test_what_is_listed_are_whole_sentences():
    for kind in ("backbones", "tasks", "suites"):
        known = registry.KINDS[kind]
        assert all(known.summaries[name].endswith(".") for name in known.names())
