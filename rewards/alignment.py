"""Alignment of picture and prompt: the cosine of their CLIP features.

Radford et al. 2021, arXiv 2103.00020; the score of Hessel et al. 2021 (CLIPScore, arXiv
2104.08718) without its factor 2.5 and its clipping at 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards import Reward, UserError, content, cut, register_reward, torch
from rewards._check import at_least_single, check
from rewards._clip import image_features, load_tokenizer, text_features
from rewards._weights import readable

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDED = content.EMBEDDED / "clip"


@register_reward("alignment")
class Alignment(Reward):
    """How well the picture fits the prompt: a cosine in [-1, 1], by the embedded CLIP model.

    Or by that in ``folder``, which is what ``save_pretrained`` of a ``CLIPModel`` and of its
    tokenizer write, with a ``preprocessor_config.json``. It is read at the first call. Pictures of
    another size are resized bicubically with antialias, as CLIP's own preprocessing does, and not
    cropped.
    """

    unit = "cosine"
    reference = "CLIP, Radford et al. 2021, arXiv 2103.00020"
    differentiable = True

    def __init__(self, device: Any, *, folder: Path = EMBEDDED) -> None:
        self.device, self.folder = torch.device(device), Path(folder)

    @classmethod
    def content(cls) -> str:
        return content.files(EMBEDDED.rglob("*"), EMBEDDED)

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        model, tokenizer, _, _ = _load(self.folder.resolve(), self.device, torch.float32)
        return cut(tokenizer, prompts, model.config.text_config.max_position_embeddings)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check(images, prompts)
        dtype = at_least_single(images).dtype
        model, tokenizer, _, _ = _load(self.folder.resolve(), self.device, dtype)
        return (self.features(images) * text_features(model, tokenizer, list(prompts))).sum(1)

    def features(self, images: Tensor) -> Tensor:
        pixels = at_least_single(images.to(self.device))
        model, _, mean, std = _load(self.folder.resolve(), self.device, pixels.dtype)
        side = model.config.vision_config.image_size
        if pixels.shape[2:] != (side, side):
            pixels = torch.nn.functional.interpolate(
                pixels, (side, side), mode="bicubic", antialias=True
            )
            pixels = pixels.clamp(0, 1)  # bicubic overshoots; an 8-bit picture could not
        return image_features(model, (pixels - mean) / std)


@lru_cache(maxsize=4)
def _load(folder: Path, device: Any, dtype: Any) -> tuple[Any, Any, Tensor, Tensor]:
    """The frozen model, its tokenizer, and the mean and std (3, 1, 1) of its pixels."""
    from transformers import CLIPModel

    if not (folder / "config.json").is_file():
        raise UserError(f"alignment: {folder} is not the folder of a CLIP model")
    with readable(folder):
        model = CLIPModel.from_pretrained(folder, local_files_only=True)
    model = model.eval().requires_grad_(False).to(device, dtype)
    tokenizer = load_tokenizer(folder)
    mean, std = (
        torch.tensor(v, device=device, dtype=dtype).view(3, 1, 1) for v in _normalisation(folder)
    )
    return model, tokenizer, mean, std


def _normalisation(folder: Path) -> tuple[list[float], list[float]]:
    if folder == EMBEDDED.resolve():
        return [0.5] * 3, [0.5] * 3
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise UserError(f"alignment: {path} is missing; it gives image_mean and image_std")
    config = json.loads(path.read_text())
    return config["image_mean"], config["image_std"]
