"""Nested states come back as they were, or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.records import checkpoint


def test_a_nested_state_comes_back_as_it_was(tmp_path: Path):
    matrix = torch.arange(6.0).view(2, 3)
    state = {
        "tensors": [matrix.t(), torch.tensor(3, dtype=torch.int64), matrix[0], matrix[0]],
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "by number": {0: {"exp_avg": torch.ones(2)}, 1: {}},
        "plain": (None, True, 1, 1.0, "text", (), [], ("nested", [2])),
        "looks like ours": {"tensor": "0", "dict": []},
        "endless": float("inf"),
    }
    checkpoint.save(tmp_path / "state.safetensors", state)
    found = checkpoint.load(tmp_path / "state.safetensors")
    assert_same(found, state)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def assert_same(found: object, expected: object) -> None:
    """Also in their types: True is not 1, a tuple no list."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", torch.Generator(), Path("x"), 1j])
def test_what_is_no_state_is_refused_and_harms_nothing(value: object, tmp_path: Path):
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, {"step": 1})
    with pytest.raises(TypeError, match=f"may not hold a {type(value).__name__}"):
        checkpoint.save(path, {"deep": [{"down": value}]})
    assert checkpoint.load(path) == {"step": 1}


def test_part_of_a_file_is_unreadable(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, {"weights": torch.ones(100), "step": 1})
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(checkpoint.Unreadable, match=r"state\.safetensors"):
            checkpoint.load(path)
    with pytest.raises(checkpoint.Unreadable):
        checkpoint.load(tmp_path / "missing.safetensors")
    save_file({"weights": torch.ones(2)}, path)  # safetensors, but no checkpoint
    with pytest.raises(checkpoint.Unreadable):
        checkpoint.load(path)
