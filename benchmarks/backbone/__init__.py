"""The model all methods share: ``load`` gives it, whatever its family."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.api import UserError
from benchmarks.compute.ledger import Ledger
from benchmarks.config import Precision, load_preset

if TYPE_CHECKING:
    from benchmarks.backbone.base import BaseBackbone
    from benchmarks.backbone.pipeline import PipelineBackbone

#: Of the frozen base model.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: Pipelines of diffusers by the name in ``model_index.json`` -> the class of their family.
FAMILIES = {
    "StableDiffusionPipeline": "benchmarks.backbone.stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "benchmarks.backbone.sdxl:StableDiffusionXL",
    "StableDiffusion3Pipeline": "benchmarks.backbone.sd3:StableDiffusion3",
    "FluxPipeline": "benchmarks.backbone.flux:Flux",
}


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
    from benchmarks.backbone.pipeline import read_index, read_pipeline

    _silence()
    preset = load_preset(name)
    model: Any = preset.model
    dtype = DTYPES[precision]
    if isinstance(model, type) and issubclass(model, BaseBackbone):
        own: Any = model
        made: BaseBackbone = own(ledger, dtype=dtype, **options)
        return made
    options |= {"resolution": preset.resolution}
    if not isinstance(model, str):
        pipeline = model()
        cls = family([kind.__name__ for kind in type(pipeline).__mro__])
        return cls(pipeline.to(dtype), ledger, **options)
    place, _, revision = (model, "", "") if Path(model).is_dir() else model.partition("@")
    try:
        index = read_index(place, revision or None)
        cls = family([index.get("_class_name")])
        pipeline = read_pipeline(cls, index, place, revision or None, dtype)
        return cls(pipeline, ledger, **options)
    except UserError as error:
        raise UserError(f"--backbone {place}: {error}") from error


def family(pipeline_classes: Sequence[Any]) -> type[PipelineBackbone]:
    """The family of the first of these classes of pipelines, by name, that is known.

    Raises UserError if none is.
    """
    for name in pipeline_classes:
        if isinstance(name, str) and name in FAMILIES:
            module, _, cls = FAMILIES[name].partition(":")
            found: type[PipelineBackbone] = getattr(importlib.import_module(module), cls)
            return found
    raise UserError(
        f"a {pipeline_classes[0]} is of no known family; supported: {', '.join(FAMILIES)}, or the "
        "class of a backbone of your own (docs/how-to/own-backbone.md)"
    )


def _silence() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
