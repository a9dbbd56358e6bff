"""Nested states as one safetensors file: no pickle, written atomically.

A state is made of dicts, lists, tuples, tensors, numbers, text, booleans and None. Tensors become
the file's tensors, everything else JSON in its metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class Unreadable(Exception):
    """A file that is no checkpoint, or only part of one."""


def save(path: Path, state: Any) -> None:
    """Write ``state``; raises TypeError if there is anything else in it."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_pack(state, tensors))
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"state": tree})
    temporary.replace(path)


def load(path: Path) -> Any:
    """What ``save`` wrote, on the CPU. Raises Unreadable."""
    try:
        with safe_open(path, framework="pt") as file:
            tree = json.loads((file.metadata() or {})["state"])
            return _unpack(tree, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise Unreadable(f"{path}: {error}") from error


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, dict):  # keys may be numbers, so pairs
        return {"dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(v, tensors) for v in value]}
    if isinstance(value, list):
        return [_pack(v, tensors) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a state may not hold a {type(value).__name__}")


def _unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "tuple":
        return tuple(_unpack(v, tensors) for v in value)
    return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value}
