"""The detector's soft count against its hard count, and its model in the published format."""

import pytest
import torch
from scipy.stats import spearmanr
from synthetic import fixture_weights  # noqa: F401
from torch import Tensor
from transformers import Owlv2ForObjectDetection

from benchmarks.api import UserError
from rewards import detector
from rewards._clip import MEAN, STD


def detections(seed: int) -> tuple[Tensor, Tensor, int]:
    """Boxes as a detector gives them: objects with several near copies each, and background."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=g)

    objects = int(torch.randint(0, 7, (), generator=g))
    cells = torch.randperm(16, generator=g)[:objects]
    p, corners = [uniform(0, 0.12, 40)], [uniform(0, 0.7, 40, 2)]
    corners = [torch.cat([corners[0], corners[0] + uniform(0.05, 0.3, 40, 2)], 1)]
    for cell in cells:
        copies = int(torch.randint(1, 6, (), generator=g))
        corner = torch.stack([cell % 4, cell // 4]) / 4
        box = torch.cat([corner + 0.02, corner + 0.23])
        corners.append(box + uniform(-0.01, 0.01, copies, 4))
        p.append(uniform(0.3, 0.9, ()) - uniform(0.0, 0.25, copies).sort().values)
    return torch.cat(p)[None], torch.cat(corners)[None], objects


def test_the_soft_count_is_the_hard_count_with_a_gradient() -> None:
    hard, soft, true = [], [], []
    for seed in range(60):
        p, corners, objects = detections(seed)
        hard.append(detector.hard_count(p, corners).item())
        soft.append(detector.soft_count(p, corners).item())
        true.append(objects)
    difference = (torch.tensor(hard) - torch.tensor(soft)).abs()
    print(f"\nSpearman {spearmanr(hard, soft).statistic:.3f}, mean difference {difference.mean()}")
    assert spearmanr(hard, soft).statistic > 0.97
    assert difference.mean() < 0.2
    assert spearmanr(hard, true).statistic > 0.97


def test_copies_of_a_box_count_once_and_distant_ones_add_up() -> None:
    box = torch.tensor([0.1, 0.1, 0.3, 0.3])
    boxes = torch.stack([box, box, box + 0.5])[None]
    p = torch.tensor([[0.8, 0.8, 0.8]])
    torch.testing.assert_close(
        detector.soft_count(p, boxes), torch.tensor([2.0]), atol=0.01, rtol=0
    )
    assert detector.hard_count(p, boxes).tolist() == [2]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("cat", ("cat", 1)),
        ("a sea lion", ("sea lion", 1)),
        ("Two foxes on a red background", ("foxes", 2)),
        ("12 monkeys", ("monkeys", 12)),
    ],
)
def test_prompts_are_understood(prompt: str, expected: tuple[str, int]) -> None:
    assert detector.meaning(prompt) == expected


@pytest.mark.parametrize("prompt", ["", "two", "a", "on the hill"])
def test_a_prompt_without_an_object_is_named(prompt: str) -> None:
    with pytest.raises(UserError, match="need prompts such as"):
        detector.meaning(prompt)


@torch.no_grad()
def test_detections_are_the_models_own(weights) -> None:
    """A wide picture is padded below with grey; the query is 'a photo of' the object."""
    pixels = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    p, corners = detector.detect(pixels, ["cat"])
    square = torch.cat([pixels, torch.full((1, 3, 32, 64), 0.5)], 2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    model = Owlv2ForObjectDetection.from_pretrained(weights / "owlv2-base-patch16-ensemble").eval()
    ids = torch.tensor([[1, 2, 6, 6, 3, 7, *[0] * 6]])
    out = model(input_ids=ids, attention_mask=ids != 0, pixel_values=(square - mean) / std)
    torch.testing.assert_close(p, out.logits[..., 0].sigmoid())
    x, y, w, h = out.pred_boxes.unbind(-1)
    expected = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
    torch.testing.assert_close(corners, expected)
