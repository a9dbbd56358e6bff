"""The contract of Configs, and that recorded cells keep the hashes in their names."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import registry
from benchmarks.api import Batch, Sampling, UserError
from benchmarks.config import OLD_KEEP, load_preset, method_defaults, override
from benchmarks.records.cell import Cell

ROOT = Path(__file__).parents[2]
CELLS = sorted((ROOT / "results").rglob("cell.json"))
#: What stands in ``cell.json`` beside the description.
AROUND = {"sources", "device", "processes", "threads", "python", "git", "gpu"}


def config(name: str) -> Any:
    return method_defaults(name, load_preset("emoji"))


@pytest.mark.parametrize("name", registry.methods.names())
def test_every_config_can_be_made_small(name: str):
    small = config(name).small(4, 4)
    assert isinstance(small, Sampling)
    assert (small.sampling_steps, small.micro_batch) == (4, 2) and small.update_size <= 4
    registered = registry.methods.get(name)
    assert type(small) is registered.Config


def test_sizes_change_in_proportion():
    assert config("alignprop").resized(24).batch_size == 24
    ddpo = dataclasses.replace(config("ddpo"), updates_per_round=2)
    assert (ddpo.update_size, ddpo.resized(8).samples_per_round) == (16, 16)
    with pytest.raises(UserError, match="samples_per_prompt"):
        ddpo.resized(3)
    rwr = config("rwr").resized(8)
    assert (rwr.batch_size, rwr.samples_per_round, rwr.updates_per_round) == (8, 16, 4)
    with pytest.raises(UserError, match="uneven"):
        dataclasses.replace(rwr, samples_per_round=13).resized(1)
    refl = config("refl").resampled(4)
    assert (refl.sampling_steps, refl.earliest, refl.latest) == (4, 2, 3)


def test_a_batch_is_the_common_case():
    assert Batch(batch_size=6).update_size == 6
    small = Batch().small(4, 3)
    assert (small.batch_size, small.micro_batch, small.sampling_steps) == (4, 2, 3)
    with pytest.raises(NotImplementedError):
        Sampling().small(4, 3)


@pytest.mark.parametrize("path", CELLS, ids=lambda path: path.parent.name)
def test_recorded_cells_keep_their_hashes(path: Path, tmp_path: Path):
    """From their own content, and from the Config that reads and writes it today."""
    recorded = json.loads(path.read_text())
    description = {k: v for k, v in recorded.items() if k not in AROUND}
    values = description["config"]
    default = registry.methods.get(description["method"]).Config()
    read = override(default, {k: v for k, v in values.items() if v is not None}, "cell.json")
    nothing = {k: None for k, v in values.items() if v is None}
    description["config"] = dataclasses.asdict(dataclasses.replace(read, **nothing))
    assert description["config"] == values
    assert Cell(tmp_path, description).path.name == path.parent.name


def test_old_words_describe_what_is_kept():
    assert OLD_KEEP == {"all": "store", "latents": "step", "blocks": "unet"}
