"""Families whose models are diffusers' pipelines: what is read from a folder, and what is refused.

A pipeline draws what its configuration says. Of every option that would change its pictures a
family either does the same, or says in one line that it does not.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from torch import Tensor

from benchmarks.api import UserError
from benchmarks.backbone.base import BaseBackbone
from benchmarks.compute.ledger import Ledger

#: What reading a folder fails with whose files are not what they say.
DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    SafetensorError,
)


INDEX = "model_index.json"


class PipelineBackbone(BaseBackbone):
    """A diffusers pipeline with a frozen base and trainable weights in its denoiser.

    ``resolution`` is the height and width of its pictures, by default the pipeline's own. Raises
    UserError for a pipeline that would draw other pictures than this backbone.
    """

    #: The pipeline's class in diffusers, as ``model_index.json`` names it.
    pipeline_class: ClassVar[str]
    #: Its parts that hold weights -> their classes.
    parts: ClassVar[Mapping[str, str]]
    #: Parts that may be missing.
    optional: ClassVar[Sequence[str]] = ()
    #: Arguments of its ``from_pretrained``.
    reading: ClassVar[Mapping[str, Any]] = {}
    #: The sides of latents are multiples of this.
    patch: ClassVar[int] = 1

    def __init__(
        self,
        pipeline: Any,
        ledger: Ledger,
        *,
        resolution: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        for part in self.parts:
            value = getattr(pipeline, part)
            names = [cls.__name__ for cls in type(value).__mro__]
            self.check_part(part, [] if value is None else names)
        self.pipeline, self.vae = pipeline, pipeline.vae
        self.check()
        encoders = [getattr(pipeline, part) for part in self.parts if "text_encoder" in part]
        super().__init__(
            ledger,
            denoiser=getattr(pipeline, self.component),
            autoencoder=pipeline.vae,
            others=[encoder for encoder in encoders if encoder is not None],
            latent_shape=(self.vae.config.latent_channels, *self.sides(resolution)),
            **options,
        )

    @classmethod
    def check_part(cls, part: str, names: Sequence[Any]) -> None:
        """Refuse a part by the names of its class and of those it inherits, if it is there."""
        wanted = cls.parts[part]
        if wanted not in names and (names or part not in cls.optional):
            found = f"is a {names[0]}" if names else "is missing"
            raise UserError(f"{part} {found}; supported: {wanted}")

    @abstractmethod
    def check(self) -> None:
        """Refuse what would draw other pictures, and take over the scheduler."""

    @abstractmethod
    def condition_shapes(self) -> list[tuple[int, ...]]:
        """Of ``conditions`` for one prompt; for the planner, which encodes nothing."""

    @property
    def own_sides(self) -> Any:
        """Height and width, or both in one, of the latents of the pipeline's own pictures."""
        return getattr(self.pipeline, self.component).config.sample_size

    def sides(self, resolution: Sequence[int] | None) -> tuple[int, int]:
        """Height and width of latents. Raises UserError for pictures that cannot be."""
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if resolution:
            multiple, given = scale * self.patch, tuple(resolution)
            if len(given) != 2 or any(side < 1 or side % multiple for side in given):
                raise UserError(
                    f"resolution is {list(given)}; it must be a height and a width, multiples of "
                    f"{multiple}"
                )
            return given[0] // scale, given[1] // scale
        match self.own_sides:
            case int(side):
                return side, side
            case [int(height), int(width)]:
                return height, width
            case other:
                raise UserError(
                    f"{self.component}/config.json: sample_size is {other!r}; it must be a number "
                    "or two, or give the backbone's TOML file a resolution = [512, 512]"
                )

    def tokenizers(self) -> list[Any]:
        """CLIP's."""
        return [self.pipeline.tokenizer]

    def pixels(self, latents: Tensor) -> Tensor:
        """One pass of the decoder."""
        decoded: Tensor = self.vae.decode(self.unscaled(latents).to(self.vae.dtype)).sample
        return decoded

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents as the autoencoder takes them."""
        unscaled: Tensor = latents / self.vae.config.scaling_factor
        return unscaled


def supported(place: str, config: Mapping[str, Any], **options: Sequence[Any]) -> None:
    """Raise UserError for an option of ``config`` whose value is not among those given.

    One that is missing there is None.
    """
    for key, values in options.items():
        if (found := config.get(key)) not in values:
            wanted = " or ".join(dict.fromkeys("null" if v is None else str(v) for v in values))
            raise UserError(f"{place}: {key} is {found!r}; supported: {wanted}")


def read_index(place: str, revision: str | None) -> dict[str, Any]:
    """The ``model_index.json`` of a diffusers folder or hub id.

    Raises UserError if there is none.
    """
    try:
        file = Path(place) / INDEX
        if not Path(place).is_dir():
            file = Path(hf_hub_download(place, INDEX, revision=revision))
        return dict(json.loads(file.read_text("utf-8")))
    except DAMAGED as error:
        raise _unreadable(error) from error


def read_pipeline(
    family: type[PipelineBackbone],
    index: Mapping[str, Any],
    place: str,
    revision: str | None,
    dtype: torch.dtype,
) -> Any:
    """The family's pipeline in a diffusers folder or of a hub id; only safetensors are read.

    ``index`` is its ``model_index.json``. Raises UserError if there is none.
    """
    try:
        for part in family.parts:
            _, name = index.get(part) or (None, None)
            family.check_part(part, [name] if name else [])
        return getattr(diffusers, family.pipeline_class).from_pretrained(
            place, revision=revision, dtype=dtype, use_safetensors=True, **family.reading
        )
    except DAMAGED as error:
        raise _unreadable(error) from error


def _unreadable(error: BaseException) -> UserError:
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(
        f"not a diffusers folder with safetensors weights, nor a hub model that can be reached "
        f"({line})"
    )
