"""The judge says how likely a picture shows what was asked, and nobody may climb it."""

import pytest
import torch

from benchmarks.api import UserError
from benchmarks.emoji import data, vision
from benchmarks.emoji.build import WEIGHTS
from benchmarks.experiments.cells import resolve
from rewards.judge import Judge


def test_it_is_the_log_probability_of_the_animal_and_of_the_number():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = vision.load(vision.Judge(), WEIGHTS / "judge.safetensors")
    animal, count = (logits.softmax(1) for logits in network(images))
    cat, fox = data.ANIMALS.index("cat"), data.ANIMALS.index("fox")
    expected = torch.stack([animal[0, cat] * count[0, 0], animal[1, fox] * count[1, 1]]).log()
    torch.testing.assert_close(
        Judge()(images, ["a cat on a blue background", "two foxes"]), expected
    )


def test_pictures_of_other_sizes_are_resized():
    assert (Judge()(torch.rand(2, 3, 32, 48), ["cat", "dog"]) <= 0).all()


@pytest.mark.parametrize("method", ["ddpo", "alignprop"])
def test_it_is_never_optimised(method: str):
    with pytest.raises(UserError, match="'judge' is for evaluation only; optimise one of"):
        resolve({method: []}, reward="judge")
