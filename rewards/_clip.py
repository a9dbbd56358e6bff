"""What the CLIP rewards share: preprocessing of tensors, and features of pictures and prompts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rewards import Reward, cut, torch
from rewards._check import at_least_single, check
from rewards._weights import TOKENIZER, Hub, build, own_weights, readable

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 224  # pixels
# The published statistics of CLIP's pixels: openai/CLIP, clip.py, _transform.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become CLIP's squares: the shorter side is resized, the centre cut out.

    The filter and the antialias change the reward, so they are recorded with every run.
    """

    filter: str
    antialias: bool

    def __str__(self) -> str:
        antialias = "with" if self.antialias else "without"
        return f"{SIDE} px, {self.filter} {antialias} antialias, centre crop"

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to normalised pixels (B, 3, 224, 224)."""
        height, width = images.shape[2:]
        short = min(height, width)
        if short != SIDE:
            size = (SIDE * height // short, SIDE * width // short)
            images = torch.nn.functional.interpolate(
                images, size, mode=self.filter, antialias=self.antialias
            )
            images = images.clamp(0, 1)  # bicubic overshoots; an 8-bit picture could not
        top, left = (round((n - SIDE) / 2) for n in images.shape[2:])
        images = images[:, :, top : top + SIDE, left : left + SIDE]
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        return (images - mean) / std


#: openai/CLIP's own, which the published rewards were trained with.
OFFICIAL = Preprocessing("bicubic", antialias=True)
#: torchvision's Resize of tensors as the official AlignProp repository ran it.
ALIGNPROP = Preprocessing("bilinear", antialias=False)


class ModelReward(Reward):
    """A reward by a frozen network, read at the first call.

    ``dtype`` is that of its weights; pictures in float64 are scored in float64.
    """

    differentiable = True
    preprocessing: ClassVar[Preprocessing] = OFFICIAL

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.recorded = str(cls.preprocessing)

    hubs: ClassVar[tuple[Hub, ...]] = ()  # the files that it reads; the last has the tokenizer
    length: ClassVar[int | None] = None  # how many tokens it reads of a text; None: it reads none
    text: ClassVar[str] = "{}"  # what it reads of a prompt

    @classmethod
    def content(cls) -> str:
        return " ".join(filter(None, (super().content(), own_weights(cls.hubs))))

    def __init__(self, device: Any, *, dtype: Any = None) -> None:
        self.device, self.weights_dtype = torch.device(device), dtype or torch.float32

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check(images, prompts)
        pixels = self.preprocessing(at_least_single(images.to(self.device)))
        dtype = pixels.dtype if pixels.dtype == torch.float64 else self.weights_dtype
        return self.score(pixels.to(dtype), list(prompts))

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        texts = {self.text.replace("{}", prompt): prompt for prompt in prompts}
        if self.length is None or all(len(text.encode()) < self.length - 1 for text in texts):
            return {}  # no text has more tokens than bytes, beside the two at its ends
        tokenizer = load_tokenizer(self.hubs[-1].folder(type(self).__name__.lower()))
        left = cut(tokenizer, list(texts), self.length)
        return {texts[text]: rest for text, rest in left.items()}

    @abstractmethod
    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Rewards (B,) of normalised ``pixels`` (B, 3, 224, 224)."""


def clip_files(repository: str, megabytes: float) -> Hub:
    """The files of a CLIP model in a hub repository."""
    return Hub(repository, ("config.json", "model.safetensors", *TOKENIZER), megabytes)


@lru_cache(maxsize=8)
def load_clip(hub: Hub, reward: str, device: Any, dtype: Any) -> tuple[Any, Any]:
    """The frozen CLIPModel and its tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    model, tokenizer = read_model(hub, reward, CLIPModel, CLIPConfig)
    return model.to(device, dtype), tokenizer


def read_model(hub: Hub, reward: str, kind: Any, config: Any) -> tuple[Any, Any]:
    """A frozen transformers model of class ``kind`` from ``clip_files``, and its tokenizer."""
    from safetensors.torch import load_file

    folder = hub.folder(reward)
    path = folder / "model.safetensors"
    with readable(path):
        state = load_file(path)
        # Older versions of transformers saved these constants with the weights.
        state = {name: v for name, v in state.items() if not name.endswith(".position_ids")}
    model = build(kind, config.from_pretrained(folder), state, path)
    return model, load_tokenizer(folder)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``."""
    from transformers import AutoTokenizer

    with readable(folder / "tokenizer.json"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def image_features(model: Any, pixels: Tensor) -> Tensor:
    """Normalised features (B, D) of pictures."""
    return _unit(model.get_image_features(pixel_values=pixels))


def text_features(model: Any, tokenizer: Any, prompts: list[str]) -> Tensor:
    """Normalised features (B, D) of prompts, which are cut at the model's length."""
    tokens = tokenizer(
        prompts,
        padding=True,
        truncation=True,
        max_length=model.config.text_config.max_position_embeddings,
        return_tensors="pt",
    ).to(model.device)
    with torch.no_grad():
        output = model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
    return _unit(output)


def cosines(model: Any, tokenizer: Any, pixels: Tensor, prompts: list[str]) -> Tensor:
    """Cosine (B,) of the features of each picture and its prompt."""
    return (image_features(model, pixels) * text_features(model, tokenizer, prompts)).sum(1)


def _unit(output: Any) -> Tensor:
    return torch.nn.functional.normalize(at_least_single(output.pooler_output), dim=1)
