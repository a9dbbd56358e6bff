"""The gold taste, on pictures whose answers are known, and the recipes of its proxies."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.emoji.next import build, data, taste_models
from benchmarks.emoji.next.taste import STYLE_TASTE, cielab, fidelity, read, taste
from benchmarks.emoji.next.vision import Verdict


class Certain(nn.Module):
    """A judge that always sees one animal in a given style, a cat as surely as told."""

    def __init__(self, style="painted", sure=1.0):
        super().__init__()
        self.style, self.sure = list(data.STYLES).index(style), sure

    def forward(self, images):
        def logits(index, size, sure=1.0):
            row = torch.full((size,), max((1 - sure) / (size - 1), 1e-9)).log()
            row[index] = math.log(sure)
            return row.expand(len(images), size)

        animal = logits(0, len(data.ANIMALS), self.sure)
        return Verdict(animal, logits(0, 4), logits(self.style, 3), logits(0, 2))


def square(ground, ink, side=36, x=None, y=None):
    """A square on a ground, colours in 0 to 255, in the middle if nothing else is said."""
    x, y = ((64 - side) // 2 if v is None else v for v in (x, y))
    picture = torch.tensor(ground).float().view(3, 1, 1).repeat(1, 64, 64)
    picture[:, y : y + side, x : x + side] = torch.tensor(ink).float().view(3, 1, 1)
    return picture[None] / 255


def test_cielab_of_known_colours():
    colors = torch.tensor([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]]) / 255
    wanted = torch.tensor([[100, 0, 0], [0, 0, 0], [53.2, 80.1, 67.2], [32.3, 79.2, -107.9]])
    found = cielab(colors[:, :, None, None])[:, :, 0, 0]
    assert torch.allclose(found, wanted, atol=0.2)


@pytest.mark.parametrize("style", data.STYLES)
def test_style_is_what_the_judge_sees(style):
    picture = square((250, 222, 100), (30, 30, 200))
    assert float(taste(picture, Certain(style)).style) == pytest.approx(
        STYLE_TASTE[style], abs=1e-6
    )


def test_a_third_of_the_picture_in_its_middle_is_best_composed():
    middle = taste(square((250, 222, 100), (30, 30, 200)), Certain())
    assert float(middle.composition) == pytest.approx(1, abs=0.02)
    corner = taste(square((250, 222, 100), (30, 30, 200), x=2, y=2), Certain())
    small = taste(square((250, 222, 100), (30, 30, 200), side=8), Certain())
    huge = taste(square((250, 222, 100), (30, 30, 200), side=60), Certain())
    for other in (corner, small, huge):
        assert float(other.composition) < float(middle.composition) - 0.1


def test_contrast_needs_an_animal_that_stands_out():
    strong = taste(square((250, 222, 100), (30, 30, 200)), Certain())
    faint = taste(square((250, 222, 100), (250, 180, 60)), Certain())
    empty = taste(square((250, 222, 100), (250, 222, 100)), Certain())
    assert float(strong.contrast) == 1 > float(faint.contrast) > float(empty.contrast) == 0
    assert float(empty.composition) < 0.1


def test_a_warm_ground_is_liked_and_a_garish_or_grey_one_is_not():
    def liked(ground):
        return float(taste(square(ground, (30, 30, 30)), Certain()).colour)

    assert liked((245, 160, 60)) > 0.75
    assert liked((255, 128, 0)) < liked((245, 160, 60))  # garish
    assert liked((150, 150, 155)) < 0.05
    assert liked((95, 150, 220)) < 0.2


def test_what_cannot_be_recognised_is_not_liked():
    picture = square((250, 222, 100), (30, 30, 200))
    sure, unsure = (float(taste(picture, Certain(sure=p)).total) for p in (1.0, 0.2))
    assert unsure == pytest.approx(0.2 * sure, rel=1e-3)
    assert 0 <= sure <= 1


def test_fidelity_is_of_what_is_named():
    picture = square(data.BACKGROUNDS["yellow"], (30, 30, 200)).repeat(4, 1, 1, 1)
    yellow, blue = list(data.BACKGROUNDS).index("yellow"), list(data.BACKGROUNDS).index("blue")
    asked = [
        data.Meaning(0, 1, -1, -1),
        data.Meaning(0, 1, yellow, 1),
        data.Meaning(0, 1, blue, -1),
        data.Meaning(0, 1, -1, 0),
    ]
    found = fidelity(read(picture, Certain()), asked)
    assert found[:2].abs().max() < 1e-4
    assert float(found[2]) == pytest.approx(math.log(0.01), abs=1e-4)
    assert float(found[3]) < -10


def test_the_proxies_learn_what_they_are_told():
    """A CLIP that knows nothing still tells bright from dark pictures; so do its heads."""
    torch.manual_seed(0)
    tokenizer = build.tokenizer(build.learn_merges())
    clip = build.clip(tokenizer).eval().requires_grad_(False)
    brightness = torch.rand(64)
    images = (brightness.view(-1, 1, 1, 1) + 0.05 * torch.randn(64, 3, 64, 64)).clamp(0, 1)
    meanings = [data.Meaning(i % 4, 1, -1, -1) for i in range(64)]
    captions = [data.text_of(meaning) for meaning in meanings]
    rated = taste_models.Rated(images, captions, meanings, read(images, Certain()), brightness)

    head = taste_models.fit_aesthetic(clip, rated, seed=0, steps=300)
    scores = taste_models.aesthetic(clip, head, images)
    assert taste_models.correlation(scores, brightness) > 0.8

    first, second = taste_models.draw_pairs(rated, 200, np.random.default_rng(0))
    same = [meanings[i] == meanings[j] for i, j in zip(first, second, strict=True)]
    assert 0.5 < np.mean(same) < 0.8  # half on purpose, and a quarter of the others
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    tuned = taste_models.fit_preference(clip, tokenizer, rated, seed=0, steps=2)
    assert all((before[name] == value).all() for name, value in clip.state_dict().items())
    assert taste_models.preference(tuned, tokenizer, images, captions).shape == (64,)
