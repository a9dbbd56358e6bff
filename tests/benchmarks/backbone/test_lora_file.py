"""LoRA files are read as diffusers' own loader reads them, whatever their layout and scale."""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_pipeline
from safetensors.torch import save_file

from benchmarks.backbone import lora_file


def kohya(state: lora_file.State, alphas: dict[str, float]) -> dict[str, torch.Tensor]:
    """In the layout of kohya's trainer; ``alphas`` by a part of the layer's name."""
    found = {}
    for key, value in state.items():
        name, _, side = key.partition(".lora_")
        down = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[side]
        flat = f"lora_unet_{name.replace('.', '_')}"
        found[f"{flat}.{down}"] = value
        found |= {f"{flat}.alpha": torch.tensor(a) for part, a in alphas.items() if part in name}
    return found


def diffusers_layout(state: lora_file.State) -> dict[str, torch.Tensor]:
    """In the layout that diffusers' training scripts wrote."""
    words = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
    return {
        f"unet.{key.replace(old, new)}": value
        for key, value in state.items()
        for old, new in words.items()
        if old in key
    }


def shrunk(state: lora_file.State, part: str, rank: int) -> lora_file.State:
    """With another rank in the layers whose names have this part."""
    return {
        k: (v[:rank] if k.endswith(lora_file.A) else v[:, :rank]).contiguous() if part in k else v
        for k, v in state.items()
    }


@pytest.mark.parametrize(
    ("layout", "rank", "more"),
    [
        ("peft", 4, {}),
        ("peft", 4, {"lora_alpha": 8, "r": 4, "use_rslora": True}),
        ("peft", 2, {"r": 4, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 9}}),
        ("peft", 2, {}),
        ("diffusers", 2, {}),
        ("kohya", 4, {}),
        ("kohya", 2, {"attn": 1.0}),
        # Where alphas differ diffusers takes the most frequent one for all, with a warning.
        ("kohya", 4, {"to_q": 1.0, "to_k": 1.0, "to_v": 2.0, "to_out": 1.0}),
    ],
)
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys")
def test_files_are_read_as_diffusers_loads_them(
    layout: str, rank: int, more: dict, tiny_lora, tmp_path: Path
):
    """With and without alphas, and with another rank in some layers."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in tiny_lora[1].items()}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state = shrunk(state, "to_q", rank)
    metadata = {}
    if layout == "kohya":
        tensors = kohya(state, more)
    elif layout == "diffusers":
        tensors = diffusers_layout(state)
    else:
        tensors = {f"unet.{key}": value for key, value in state.items()}
        if more:
            own = {
                f"unet.{k}": v
                for k, v in (
                    more | {"target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
                ).items()
            }
            metadata = {"lora_adapter_metadata": json.dumps(own)}
    save_file(tensors, tmp_path / "lora.safetensors", metadata=metadata)
    found = lora_file.read(tmp_path / "lora.safetensors")
    pipeline = tiny_pipeline()
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    names = {key.removesuffix(lora_file.A) for key in found if key.endswith(lora_file.A)}
    assert len(names) == len(state) / 2
    for name in names:
        product = found[name + lora_file.B] @ found[name + lora_file.A]
        layer = pipeline.unet.get_submodule(name)
        torch.testing.assert_close(product, layer.get_delta_weight("default_0"))
