"""The model all methods share: ``load`` gives it, whatever its family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.api import UserError
from benchmarks.compute.ledger import Ledger
from benchmarks.config import Precision, load_preset

if TYPE_CHECKING:
    from benchmarks.backbone.base import BaseBackbone

#: Of the frozen base model.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def default_precision() -> Precision:
    """bf16 on CUDA, else fp32."""
    return "bf16" if torch.cuda.is_available() else "fp32"


def load(name: str, ledger: Ledger, precision: Precision = "fp32", **options: Any) -> BaseBackbone:
    """A registered name, its TOML file, a diffusers folder, or a hub id; its passes are priced.

    A hub id may end in ``@`` and a revision: ``owner/name@commit``. Only safetensors are read.
    ``options`` are those of ``BaseBackbone``. Raises UserError if there is no such model.
    """
    backbone = unpriced(name, ledger, precision, **options)
    backbone.price()
    return backbone


def unpriced(
    name: str, ledger: Ledger, precision: Precision = "fp32", **options: Any
) -> BaseBackbone:
    """As ``load``, but the ledger does not know yet what passes cost."""
    from benchmarks.backbone.base import BaseBackbone
    from benchmarks.backbone.stable_diffusion import StableDiffusion

    _silence()
    model: Any = load_preset(name).model
    dtype = DTYPES[precision]
    if isinstance(model, type) and issubclass(model, BaseBackbone):
        own: Any = model
        made: BaseBackbone = own(ledger, dtype=dtype, **options)
        return made
    if not isinstance(model, str):
        return family(model(), ledger, dtype, **options)
    place, _, revision = (model, "", "") if Path(model).is_dir() else model.partition("@")
    return StableDiffusion(StableDiffusion.read(place, revision or None, dtype), ledger, **options)


def family(pipeline: Any, ledger: Ledger, dtype: torch.dtype, **options: Any) -> BaseBackbone:
    """The backbone of a diffusers pipeline. Raises UserError for a family that is not known."""
    from diffusers import StableDiffusionPipeline

    from benchmarks.backbone.stable_diffusion import StableDiffusion

    if not isinstance(pipeline, StableDiffusionPipeline):
        raise UserError(
            f"a {type(pipeline).__name__} is of no known family; let the Preset's model be the "
            "class of a backbone of your own, a benchmarks.backbone.base.BaseBackbone"
        )
    return StableDiffusion(pipeline.to(dtype), ledger, **options)


def _silence() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
