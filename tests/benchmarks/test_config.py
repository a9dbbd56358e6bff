"""Layers of configuration, where every value comes from, and errors that name the mistake."""

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks import config, registry
from benchmarks.api import Batch, Count, Share, UserError
from benchmarks.emoji import data


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = 1
    """how deep"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    rate: float = 0.5
    """how fast
    [paper]"""
    name: str | None = field(default=None, metadata={"help": "of the thing"})
    sizes: tuple[int, ...] = (1,)
    """all of them"""
    inner: Inner = field(default=Inner(), metadata={"help": "[ours]"})


def test_a_variant_sets_what_its_name_says():
    preset = config.load_preset("emoji")
    base = config.method_defaults("alignprop", preset)
    full = config.method_defaults("alignprop-full", preset)
    assert full.truncation.mode == "full" and base.truncation.mode == "per_trajectory"
    assert full.batch_size == base.batch_size == preset.methods["alignprop"]["batch_size"]
    assert config.method_defaults("ddpo-sf", preset).clip is None


def test_values_go_over_each_other():
    values = {"rate": 2, "name": "x", "sizes": [1, 2], "inner": {"depth": 3}}
    got = config.override(Settings(), values, "mine.toml")
    assert got == Settings(rate=2.0, name="x", sizes=(1, 2), inner=Inner(depth=3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rat": 1.0}, "mine.toml: unknown key 'rat'; did you mean 'rate'?"),
        ({"rate": "fast"}, "mine.toml: rate must be float, not 'fast'"),
        ({"rate": True}, "mine.toml: rate must be float, not True"),
        ({"name": 3}, "mine.toml: name must be str or None, not 3"),
        ({"sizes": [1, "two"]}, "mine.toml: sizes must be a list of int, not [1, 'two']"),
        ({"inner": {"deph": 1}}, "mine.toml.inner: unknown key 'deph'; did you mean 'depth'?"),
        ({"inner": {"depth": 1.5}}, "mine.toml.inner: depth must be int, not 1.5"),
        ({"inner": 3}, "mine.toml.inner must be a table, not 3"),
    ],
)
def test_errors_name_file_key_type_and_the_nearest_match(values: dict, message: str):
    with pytest.raises(UserError) as error:
        config.override(Settings(), values, "mine.toml")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing train, unseen, held_out"),
        ('train = "animals"\nunseen = []\nheld_out = []\n', "missing evaluation"),
        ("evaluation = 3\n", "evaluation must be a table, not 3"),
        ("[evaluation]\ntrain_evry = 3\n", "evaluation: unknown key 'train_evry'; did you mean"),
        ("evry = 3\n{rest}train_images = 1\n", "unknown key 'evry'"),
        ("{rest}", "evaluation: missing train_images"),
        ("heldout = []\n{rest}train_images = 1\n", "did you mean 'held_out'"),
        ("{rest}train_images = 0\n", "train_images must be at least 1"),
        ('template = "all blue"\n{rest}train_images = 1\n', "template must be a string"),
        ('{rest}train_images = "two"\n', "train_images must be int, not 'two'"),
    ],
)
def test_a_task_with_a_mistake_is_refused(text: str, message: str, tmp_path: Path):
    path = tmp_path / "mine.toml"
    rest = 'train = "animals"\nunseen = ["owl"]\nheld_out = []\n'
    rest += "[evaluation]\ntrain_every = 1\nunseen_images = 1\n"
    path.write_text(text.replace("{rest}", rest))
    with pytest.raises(UserError, match=message) as error:
        config.load_task(str(path))
    assert str(path) in str(error.value)


def test_validation_trains_on_the_animals_and_is_judged_on_others():
    animals, validation = config.load_task("animals"), config.load_task("validation")
    blue = config.load_task("animals-on-blue")
    assert validation.train == blue.train and len(animals.train) == 45
    assert not set(validation.unseen) & {*blue.train, *blue.unseen}
    # The embedded model must know them; their names stand in both places.
    assert [prompt.split()[0] for prompt in validation.unseen] == data.VALIDATION_ANIMALS
    assert blue.train[0] == "cat on a blue background" == f"{animals.train[0]} on a blue background"
    assert len(blue.unseen) == len(animals.unseen)


def test_a_backbone_file_names_its_model_and_whose_settings_it_takes(tmp_path: Path):
    path = tmp_path / "mine.toml"
    (tmp_path / "weights").mkdir()
    path.write_text('model = "weights"\nlike = "emoji"\n[alignprop.optimizer]\nlr = 5.0\n')
    found, emoji = config.load_preset(str(path)), config.load_preset("emoji")
    assert found.model == str((tmp_path / "weights").resolve())
    assert found.evaluation == emoji.evaluation and found.budget == emoji.budget
    table = found.methods["alignprop"]
    assert table["optimizer"] == emoji.methods["alignprop"]["optimizer"] | {"lr": 5.0}
    assert Path(str(emoji.model), "model_index.json").is_file()
    assert config.load_preset("someone/a-model").model == "someone/a-model"
    path.write_text('model = "someone/a-model"\n')
    with pytest.raises(UserError, match="missing budget, task, evaluation"):
        config.load_preset(str(path))
    path.write_text("")
    with pytest.raises(UserError, match="missing model"):
        config.load_preset(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budget = 3", "budget must be str or None, not 3"),
        ("like = 3", "like must be str or None, not 3"),
        ("task = 3", "task must be str or None, not 3"),
        ('like = "sd51"', "unknown backbone 'sd51'; did you mean 'sd15'"),
        ('bugdet = "steps=3"', "unknown key 'bugdet', no method either; did you mean 'budget'"),
        ("[alignprob]\nbatch_size = 3", "did you mean 'alignprop'"),
        ("ddpo = 3", "table ddpo must be a table, not 3"),
        ("[evaluation]\nguidence = 3.0", "unknown key 'guidence'; did you mean 'guidance'"),
        ('[evaluation]\nguidance = "much"', "guidance must be float, not 'much'"),
        ("evaluation = 3", "evaluation must be a table, not 3"),
    ],
)
def test_a_backbone_file_with_a_mistake_is_refused(text: str, message: str, tmp_path: Path):
    path = tmp_path / "mine.toml"
    like = "" if text.startswith("like") else 'like = "emoji"\n'
    path.write_text(f'model = "someone/a-model"\n{like}{text}\n')
    with pytest.raises(UserError) as error:
        config.load_preset(str(path))
    assert message in str(error.value) and str(path) in str(error.value)


@dataclass(frozen=True, kw_only=True)
class Shelf:
    boxes: tuple[Inner, ...]
    labels: Mapping[str, Inner] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "x: missing boxes"),
        ({"boxes": 3}, "x: boxes must be a list of tables, not 3"),
        ({"boxes": [{"depth": "a"}]}, "x.boxes[0]: depth must be int, not 'a'"),
        ({"boxes": [], "labels": {"a": {"dept": 1}}}, "x.labels.a: unknown key 'dept'; did you"),
        ({"boxes": [], "labels": ["a"]}, "x: labels must be a table of tables, not ['a']"),
    ],
)
def test_lists_and_tables_of_dataclasses_are_checked_too(values: dict, message: str):
    with pytest.raises(UserError) as error:
        config.build(Shelf, values, "x")
    assert str(error.value).startswith(message)
    right = {"boxes": [{"depth": 2}], "labels": {"a": {}}}
    assert config.build(Shelf, right, "x") == Shelf(boxes=(Inner(depth=2),), labels={"a": Inner()})


def numbers(settings: Any) -> Iterator[tuple[type, str]]:
    """The numeric fields of a dataclass, and of those in it."""
    for entry in fields(settings):
        kind = typing.get_type_hints(type(settings))[entry.name]
        value = getattr(settings, entry.name)
        if is_dataclass(value):
            yield from numbers(value)
        elif {int, float} & {kind, *typing.get_args(kind)}:
            yield type(settings), entry.name


def test_every_number_of_every_method_has_a_range():
    for name in registry.methods.names():
        for cls, field_name in numbers(registry.methods.get(name).Config()):
            assert field_name in config.ranges(cls), (
                f"{name}: say what {field_name} may be by its type, Count or Positive for instance"
            )


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("ddpo", {"timestep_fraction": 2.0}, "must be above 0 and at most 1, not 2.0"),
        ("ddpo", {"timestep_fraction": -1.0}, "above 0"),
        ("ddpo", {"clip": -1.0}, "clip must be above 0, not -1.0"),
        ("ddpo", {"max_advantage": -1.0}, "max_advantage must be above 0"),
        ("ddpo", {"inner_epochs": 0}, "inner_epochs must be at least 1, not 0"),
        ("ddpo", {"updates_per_round": -1}, "at least 1"),
        ("ddpo", {"buffer_size": 0}, "at least 1"),
        ("rwr", {"batch_size": 0}, "at least 1"),
        ("rwr", {"beta": float("nan")}, "beta must be above 0, not nan"),
        ("rwr", {"eta": -1.0}, "eta must be at least 0 and at most 1"),
        ("alignprop", {"optimizer": {"clip": 0.0}}, "x.optimizer: clip must be above 0"),
        ("alignprop", {"optimizer": {"lr": float("inf")}}, "lr must be above 0, not inf"),
        ("alignprop", {"optimizer": {"beta2": 1.0}}, "at least 0 and below 1, not 1.0"),
        ("alignprop", {"loss_scale": 0.0}, "loss_scale"),
        ("alignprop", {"target": float("nan")}, "target must be finite"),
        ("alignprop", {"truncation": {"k": -5}}, "x.truncation: k must be at least 1"),
        ("refl", {"guidance": float("nan")}, "guidance must be at least 0, not nan"),
    ],
)
def test_numbers_out_of_range_are_refused(method: str, values: dict, message: str):
    with pytest.raises(UserError) as error:
        config.method_config(method, config.load_preset("emoji"), (values, "x"))
    assert message in str(error.value) and str(error.value).startswith("x")


@dataclass(frozen=True, kw_only=True)
class Undeclared(Batch):
    batch_size: int = 4
    shares: tuple[Share, ...] = ()
    free: float = 0.0


def test_a_range_is_inherited_and_holds_in_lists():
    """A field that is declared anew keeps its range; one that has none takes all but NaN."""
    assert config.ranges(Undeclared)["batch_size"] == typing.get_args(Count)[1]
    for values in ({"batch_size": 0}, {"shares": [0.5, 1.5]}, {"free": float("nan")}):
        with pytest.raises(UserError, match=r"x: \w+ must be"):
            config.override(Undeclared(), values, "x")
    assert config.override(Undeclared(), {"free": float("inf")}, "x").free == float("inf")
