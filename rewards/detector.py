"""Objects by an open-vocabulary detector, OWLv2 (Minderer et al. 2023, arXiv 2306.09683).

Ours: AlignProp's concept removal and count were never released. The detector gives boxes, each
with the probability p_i that it shows the prompt's object. The hard count is the number of boxes
with p_i > THRESHOLD that non-maximum suppression leaves; the soft count replaces each decision by
a sigmoid s, so that it has a gradient:

    N = sum_i s(p_i - THRESHOLD) prod_j [1 - s(p_j - THRESHOLD) s(p_j - p_i) s(IoU_ij - OVERLAP)]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rewards import UserError, cut, register_reward, torch
from rewards._check import at_least_single, check
from rewards._clip import MEAN, STD, clip_files, load_tokenizer, read_model
from rewards._counts import Counting, Distance, Gone, Seen
from rewards._weights import own_weights

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = clip_files("google/owlv2-base-patch16-ensemble", 620)
TEXT, LENGTH = "a photo of {}", 16  # what the text encoder is asked, in so many tokens at most
THRESHOLD, OVERLAP = 0.2, 0.5  # of the hard count
P_WIDTH, IOU_WIDTH = 0.02, 0.05  # of the sigmoids; narrower is nearer to the hard count
BOXES = 100  # the most probable ones; the others cannot matter below a hundred objects
GREY = 0.5  # what pictures are padded with, to the right and below: transformers' own
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ENDS = {"on", "in", "with", "and", "at", "under", "near", "of"}  # the object's name stops here


class _Detected(Counting):
    """What the rewards of this file share."""

    reference = "ours, by OWLv2, Minderer et al. 2023, arXiv 2306.09683"
    recorded = "padded to a square, bilinear with antialias"

    @classmethod
    def content(cls) -> str:
        return own_weights([WEIGHTS])

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        texts = {TEXT.format(meaning(prompt)[0]): prompt for prompt in prompts}
        left = cut(load_tokenizer(WEIGHTS.folder("owlv2-count")), list(texts), LENGTH)
        return {texts[text]: rest for text, rest in left.items()}

    def soft_count(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """N (B,), and how many the prompts ask for (B,)."""
        check(images, prompts)
        asked = [meaning(prompt) for prompt in prompts]
        pixels = at_least_single(images.to(self.device))
        wanted = pixels.new_tensor([number for _, number in asked])
        return soft_count(*detect(pixels, [name for name, _ in asked])), wanted


@register_reward("owlv2-count")
class DetectedCount(_Detected, Distance):
    """Minus the distance between the detector's soft count and the number in the prompt."""


@register_reward("owlv2-presence")
class DetectedPresence(_Detected, Seen):
    """Whether the detector sees the prompt's object: 1 - exp(-N)."""


@register_reward("owlv2-absence")
class DetectedAbsence(_Detected, Gone):
    """Whether the detector no longer sees the prompt's object: exp(-N)."""


def meaning(prompt: str) -> tuple[str, int]:
    """What is asked for and how many: ``two foxes on a red background`` is (foxes, 2)."""
    words = prompt.lower().replace(",", " ").split()
    number = 1
    if words and (words[0] in NUMBERS or words[0].isdecimal()):
        first = words.pop(0)
        number = int(first) if first.isdecimal() else NUMBERS.index(first) + 1
    elif words and words[0] in ("a", "an", "the"):
        words.pop(0)
    end = next((i for i, word in enumerate(words) if word in ENDS), len(words))
    if not words[:end]:
        raise UserError(
            f"the detector's rewards need prompts such as 'cat' or 'two foxes on a red "
            f"background', not {prompt!r}"
        )
    return " ".join(words[:end]), number


def detect(pixels: Tensor, names: list[str]) -> tuple[Tensor, Tensor]:
    """Probability (B, P) and corners (B, P, 4) in shares of the square, for an object each."""
    model, tokenizer = _load(pixels.device, pixels.dtype)
    height, width = pixels.shape[2:]
    side, size = max(height, width), model.config.vision_config.image_size
    edges = (0, side - width, 0, side - height)
    pixels = torch.nn.functional.pad(pixels, edges, value=GREY)
    pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    mean, std = (pixels.new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    tokens = tokenizer(
        [TEXT.format(name) for name in names],
        padding="max_length",
        truncation=True,
        max_length=model.config.text_config.max_position_embeddings,
        return_tensors="pt",
    ).to(pixels.device)
    found = model(
        input_ids=tokens["input_ids"],
        attention_mask=tokens["attention_mask"],
        pixel_values=(pixels - mean) / std,
    )
    centre, extent = found.pred_boxes[..., :2], found.pred_boxes[..., 2:]
    corners = torch.cat([centre - extent / 2, centre + extent / 2], -1)
    return found.logits[..., 0].sigmoid(), corners


def soft_count(probabilities: Tensor, corners: Tensor) -> Tensor:
    """N (B,) of boxes with ``probabilities`` (B, P) and ``corners`` (B, P, 4)."""
    count = min(BOXES, probabilities.shape[1])
    p, order = probabilities.topk(count, dim=1)
    overlap = iou(corners.gather(1, order[..., None].expand(-1, -1, 4)))
    present = ((p - THRESHOLD) / P_WIDTH).sigmoid()
    better = ((p[:, None, :] - p[:, :, None]) / P_WIDTH).sigmoid()  # (B, i, j): j than i
    same = ((overlap - OVERLAP) / IOU_WIDTH).sigmoid()
    other = 1 - torch.eye(count, dtype=p.dtype, device=p.device)
    kept = (1 - present[:, None, :] * better * same * other).prod(2)
    return (present * kept).sum(1)


def hard_count(probabilities: Tensor, corners: Tensor) -> Tensor:
    """The number of boxes (B,) above the threshold that greedy suppression leaves."""
    counts = []
    for p, overlap in zip(probabilities, iou(corners), strict=True):
        kept: list[int] = []
        for i in p.argsort(descending=True).tolist():
            if p[i] > THRESHOLD and all(overlap[i, j] <= OVERLAP for j in kept):
                kept.append(i)
        counts.append(len(kept))
    return torch.tensor(counts)


def iou(corners: Tensor) -> Tensor:
    """Intersection over union (B, P, P) of all pairs of boxes (B, P, 4)."""
    a, b = corners[:, :, None], corners[:, None, :]
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    area = (corners[..., 2:] - corners[..., :2]).prod(-1)
    return shared / (area[:, :, None] + area[:, None, :] - shared).clamp(min=1e-12)


@lru_cache(maxsize=2)
def _load(device: Any, dtype: Any) -> tuple[Any, Any]:
    """The frozen detector and its tokenizer."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    model, tokenizer = read_model(WEIGHTS, "owlv2-count", Owlv2ForObjectDetection, Owlv2Config)
    return model.to(device, dtype), tokenizer
