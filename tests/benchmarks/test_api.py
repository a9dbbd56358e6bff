"""The contracts of Configs and rewards."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from benchmarks import registry
from benchmarks.api import Batch, Reward, Sampling, UserError
from benchmarks.config import OLD_KEEP, load_preset, method_defaults


def config(name: str) -> Any:
    return method_defaults(name, load_preset("emoji"))


@pytest.mark.parametrize("name", registry.methods.names())
def test_every_config_can_be_made_small(name: str):
    small = config(name).small(4, 4)
    assert isinstance(small, Sampling)
    assert (small.sampling_steps, small.micro_batch) == (4, 2) and small.update_size <= 4
    registered = registry.methods.get(name)
    assert type(small) is registered.Config


def test_sizes_change_in_proportion():
    assert config("alignprop").resized(24).batch_size == 24
    ddpo = dataclasses.replace(config("ddpo"), updates_per_round=2)
    assert (ddpo.update_size, ddpo.resized(8).samples_per_round) == (16, 16)
    with pytest.raises(UserError, match="samples_per_prompt"):
        ddpo.resized(3)
    rwr = config("rwr").resized(8)
    assert (rwr.batch_size, rwr.samples_per_round, rwr.updates_per_round) == (8, 16, 4)
    with pytest.raises(UserError, match="uneven"):
        dataclasses.replace(rwr, samples_per_round=13).resized(1)
    refl = config("refl").resampled(4)
    assert (refl.sampling_steps, refl.earliest, refl.latest) == (4, 2, 3)


def test_a_batch_is_the_common_case():
    assert Batch(batch_size=6).update_size == 6
    small = Batch().small(4, 3)
    assert (small.batch_size, small.micro_batch, small.sampling_steps) == (4, 2, 3)
    with pytest.raises(NotImplementedError):
        Sampling().small(4, 3)


def test_old_words_describe_what_is_kept():
    assert OLD_KEEP == {"all": "store", "latents": "step", "blocks": "unet"}


@pytest.mark.parametrize("shape", [(2, 1), (4,), (), (1, 2)])
def test_a_reward_gives_a_number_for_each_picture(shape: tuple[int, ...]):
    """Other shapes would be broadcast: gradients would double, or mix pictures."""

    class Wrong(Reward):
        unit, reference, differentiable = "none", "toy", True

        def __init__(self, device: object = "cpu") -> None:
            pass

        def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            return torch.zeros(shape)

    with pytest.raises(UserError, match=r"reward Wrong returned a Tensor of shape .* \(2,\)"):
        Wrong()(torch.zeros(2, 3, 4, 4), ["a", "b"])
