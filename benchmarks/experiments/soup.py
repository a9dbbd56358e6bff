"""LoRA checkpoints and their mixes in weight space ("soups").

A mix is of the products B A, which are what is added to the weights, and not of A and B apart:
sum_i c_i B_i A_i = [c_1 B_1, c_2 B_2, ...] [A_1; A_2; ...], exact at the sum of the ranks. The base
model is the zero product, so (1 - c) base + c checkpoint is the checkpoint's product times c.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open
from torch import Tensor

from benchmarks.api import UserError

WEIGHTS = "pytorch_lora_weights.safetensors"
A, B = ".lora_A.weight", ".lora_B.weight"

#: peft's names: ``<layer>.lora_A.weight`` (r, in) and ``<layer>.lora_B.weight`` (out, r), with
#: which the model adds B A to the layer's weight.
State = dict[str, Tensor]


def weights_file(path: Path) -> Path:
    """The file of a checkpoint given as file, cell or folder. Raises UserError if there is none."""
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: no LoRA checkpoint here ({WEIGHTS}, or another .safetensors)")
    return file


def read(path: Path) -> State:
    """A checkpoint of the U-Net in any format diffusers loads, its scale (alpha / r) put into B.

    Raises UserError for a file that is none, or that also changes the text encoder.
    """
    file = weights_file(path)
    try:
        with safe_open(file, framework="pt") as content:
            raw = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
            meta = json.loads((content.metadata() or {}).get("lora_adapter_metadata", "{}"))
        layers, alphas = StableDiffusionPipeline.lora_state_dict(raw)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{file}: not a LoRA checkpoint in safetensors ({error})") from error
    if not layers or not all(key.startswith("unet.") for key in layers):
        raise UserError(f"{file}: not a LoRA of the U-Net alone")
    plain = {key.removeprefix("unet."): value.float() for key, value in layers.items()}
    state: State = convert_unet_state_dict_to_peft(plain)
    for key in [key for key in state if key.endswith(B)]:
        rank, name = state[key].shape[1], key.removesuffix(B)
        alpha = (alphas or {}).get(f"unet.{name}.alpha", meta.get("unet.lora_alpha", rank))
        state[key] *= alpha / (math.sqrt(rank) if meta.get("unet.use_rslora") else rank)
    return state


def rank(state: State) -> int:
    """The largest rank of any layer."""
    return max(value.shape[0] for key, value in state.items() if key.endswith(A))


def mix(states: Sequence[State], coefficients: Sequence[float], size: int | None = None) -> State:
    """The state whose products are the weighted sum of the ``states``' products.

    Every layer gets rank ``size`` (the sum of the ranks if None), filled up with zeros.
    """
    size = size or sum(map(rank, states))
    mixed: State = {}
    for name in dict.fromkeys(k.removesuffix(A) for s in states for k in s if k.endswith(A)):
        pairs = [(c, s) for c, s in zip(coefficients, states, strict=True) if name + A in s]
        down = torch.cat([s[name + A] for _, s in pairs])
        up = torch.cat([c * s[name + B] for c, s in pairs], dim=1)
        empty = size - len(down)
        mixed[name + A] = torch.cat([down, down.new_zeros(empty, down.shape[1])])
        mixed[name + B] = torch.cat([up, up.new_zeros(len(up), empty)], dim=1)
    return mixed
