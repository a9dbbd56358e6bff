"""LoRA checkpoints on disk, in any of the formats that diffusers loads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_unet_state_dict_to_peft, get_peft_kwargs
from peft import LoraConfig
from peft.utils.other import get_pattern_key
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
    config = _config(state, _inside(part, alphas or {}), _inside(part, meta))
    for key in [key for key in state if key.endswith(B)]:
        state[key] *= _scale(config, key.removesuffix(B))
    return state


def _inside(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of this part of the model."""
    return {
        key.removeprefix(f"{part}."): value
        for key, value in values.items()
        if key.startswith(f"{part}.")
    }


def _config(state: State, alphas: dict[str, float], meta: dict[str, Any]) -> LoraConfig:
    """Ranks and alphas as diffusers' own loader finds them: ``load_lora_adapter``."""
    if meta:
        return LoraConfig(**meta)
    ranks = {f"^{key}": value.shape[1] for key, value in state.items() if key.endswith(B)}
    return LoraConfig(**get_peft_kwargs(ranks, alphas, state))


def _scale(config: LoraConfig, name: str) -> float:
    """What peft multiplies the product of a layer by."""
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, name), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, name), config.lora_alpha)
    return float(alpha / (math.sqrt(rank) if config.use_rslora else rank))
