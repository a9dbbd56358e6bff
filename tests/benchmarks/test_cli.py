"""What all commands share: shards, what was typed, and what options mean."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest

from benchmarks.api import UserError
from benchmarks.cli import Launching, explained, given, meanings, parse_shard


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


def test_shards_cover_all_cells_once():
    for count in (1, 3, 5):
        shards = [range(4)[parse_shard(f"{i}/{count}")] for i in range(1, count + 1)]
        assert sorted(i for shard in shards for i in shard) == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_wrong_shard(text: str):
    with pytest.raises(UserError, match="write I/N"):
        parse_shard(text)


def test_an_empty_shard_is_refused_where_it_must_not_be():
    assert Launching(shard="2/3").share([1, 2, 3, 4]) == [2]
    assert Launching(shard="3/3").share([1], may_be_empty=True) == []
    with pytest.raises(UserError, match="there are only 1 cells"):
        Launching(shard="3/3").share([1])


@dataclass(frozen=True, kw_only=True)
class Everything:
    number: int = 0
    rate: float = 1e-3
    switch: bool = False
    other_switch: bool = True
    word: str = "x"
    mode: Literal["a", "b"] = "a"
    path: Path | None = None
    clip: float | None = 1.0
    words: tuple[str, ...] = ("x",)
    sizes: tuple[int, ...] | None = None
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ([], set()),
        (["--number", "0"], {"number"}),  # though it is the default
        (["--rate", "1e-3", "--mode", "a"], {"rate", "mode"}),
        (["--no-switch", "--other-switch"], {"switch", "other_switch"}),
        (["--word=x", "--path", "p"], {"word", "path"}),
        (["--clip", "None", "--words", "x"], {"clip", "words"}),
        (["--clip", "1.0", "--sizes", "1", "2"], {"clip", "sizes"}),
        (["--inner.depth", "1"], {"inner.depth"}),
    ],
)
def test_what_was_typed_is_told_from_defaults(typed: list[str], names: set[str]):
    assert given(Everything, typed) == names


def test_meanings_stand_in_metadata_or_under_the_field():
    found = {"rate": "how fast [paper]", "name": "of the thing", "sizes": "all of them"}
    assert meanings(Settings) == found | {"inner": "[ours]"}


def test_help_says_which_layer_set_a_value():
    sources = {
        "rate": "default",
        "name": "mine.toml",
        "sizes": "default",
        "inner.depth": "preset x",
    }
    shown = explained(Settings(rate=2.0, inner=Inner(depth=9)), sources)
    assert (shown.rate, shown.inner.depth) == (2.0, 9)
    said = {f.name: f.metadata.get("help") for f in (*fields(shown), *fields(shown.inner))}
    assert said["name"] == "of the thing; set by mine.toml"
    assert said["rate"] == "how fast [paper]"
    assert said["depth"] == "how deep [ours]; set by preset x"
