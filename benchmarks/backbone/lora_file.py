"""LoRA checkpoints on disk, in any of the formats that diffusers loads."""

from __future__ import annotations

import json
import math
from pathlib import Path

from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open
from torch import Tensor

from benchmarks.api import UserError
from benchmarks.backbone.base import LORA_FILE

A, B = ".lora_A.weight", ".lora_B.weight"

#: peft's names: ``<layer>.lora_A.weight`` (r, in) and ``<layer>.lora_B.weight`` (out, r), with
#: which the model adds B A to the layer's weight.
State = dict[str, Tensor]


def weights_file(path: Path) -> Path:
    """The file of a checkpoint given as file, cell or folder. Raises UserError if there is none."""
    file = path / LORA_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: no LoRA checkpoint here ({LORA_FILE}, or another .safetensors)")
    return file


def read(path: Path) -> State:
    """A checkpoint of the denoiser, its scale (alpha / r) put into B.

    Raises UserError for a file that is none, or that changes more than one part of a model.
    """
    file = weights_file(path)
    try:
        with safe_open(file, framework="pt") as content:
            raw = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
            meta = json.loads((content.metadata() or {}).get("lora_adapter_metadata", "{}"))
        # Also brings the formats of other trainers, which name layers otherwise, to diffusers'.
        layers, alphas = StableDiffusionPipeline.lora_state_dict(raw)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{file}: not a LoRA checkpoint in safetensors ({error})") from error
    parts = {key.partition(".")[0] for key in layers}
    if len(parts) != 1 or parts & {"text_encoder", "text_encoder_2"}:
        raise UserError(f"{file}: not a LoRA of the denoiser alone")
    (part,) = parts
    plain = {key.removeprefix(f"{part}."): value.float() for key, value in layers.items()}
    peft = any(key.endswith(A) for key in plain)
    state: State = plain if peft else convert_unet_state_dict_to_peft(plain)
    for key in [key for key in state if key.endswith(B)]:
        rank, name = state[key].shape[1], key.removesuffix(B)
        alpha = (alphas or {}).get(f"{part}.{name}.alpha", meta.get(f"{part}.lora_alpha", rank))
        state[key] *= alpha / (math.sqrt(rank) if meta.get(f"{part}.use_rslora") else rank)
    return state
