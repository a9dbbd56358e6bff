"""What every registered reward keeps: bad input is named, gradients are right, nothing is heavy."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import card
import pytest
import torch
from synthetic import fixture_weights  # noqa: F401
from torch import Tensor

from benchmarks import registry
from benchmarks.api import Reward

MIXTURE = "0.7*jpeg-soft+0.3*colourfulness"
NAMES = [*registry.rewards.names(), MIXTURE]
PROMPTS = ["a cat", "two dogs"]


def pictures(count: int = 2, height: int = 24, width: int = 24) -> Tensor:
    """Smooth pictures with some texture, away from 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 3, 3, generator=generator)
    coarse = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return 0.1 + 0.7 * coarse + 0.1 * torch.rand(coarse.shape, generator=generator)


@cache
def make(name: str) -> Reward:
    reward: Reward = registry.rewards.get(name)("cpu")
    if reward.calibrates:
        reward.calibrate(pictures(4), PROMPTS * 2)
    return reward


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str) -> None:
    kind = registry.rewards.get(name)
    assert kind.unit and kind.reference and (kind.__doc__ or "").strip().endswith(".")
    if kind.stand_in:
        assert not kind.differentiable and registry.rewards.get(kind.stand_in).differentiable


@pytest.mark.parametrize(
    ("change", "prompts", "message"),
    [
        (lambda x: x.index_fill(3, torch.tensor([2]), float("nan")), PROMPTS, "NaN"),
        (lambda x: x + 0.5, PROMPTS, r"\[0, 1\]"),
        (lambda x: 2 * x - 1, PROMPTS, r"\[0, 1\]"),
        (lambda x: x[0], PROMPTS, "shape"),
        (lambda x: x[:, :1], PROMPTS, "shape"),
        (lambda x: x.movedim(1, 3), PROMPTS, "shape"),
        (lambda x: x[:0], [], "empty"),
        (lambda x: (255 * x).byte(), PROMPTS, "floating point"),
        (lambda x: x, [*PROMPTS, "a fox"], "prompts"),
        (lambda x: x, PROMPTS[:1], "prompts"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_named(
    name: str, change: Callable[[Tensor], Tensor], prompts: list[str], message: str
) -> None:
    """Before any weights are read."""
    with pytest.raises(ValueError, match=message):
        make(name)(change(pictures()), prompts)


@pytest.mark.parametrize("name", NAMES)
def test_any_shape_batch_and_precision(name: str, weights: Path) -> None:
    """Non-square pictures; each picture's reward is its own; half precision is promoted."""
    x = pictures(2, 20, 33)
    values = make(name)(x, PROMPTS)
    assert values.shape == (2,) and values.dtype == torch.float32 and values.isfinite().all()
    single = torch.cat([make(name)(x[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(values, single, atol=1e-4, rtol=1e-4)
    assert make(name)(x.half(), PROMPTS).dtype == torch.float32


@pytest.mark.parametrize("name", [n for n in NAMES if registry.rewards.get(n).differentiable])
def test_gradients_are_right(name: str, weights: Path) -> None:
    """In float64 the derivative along a random direction equals the central difference."""
    x, prompts = pictures().double().requires_grad_(), ["a cat", "three dogs"]
    reward = make(name)
    values = reward(x, prompts)
    assert values.dtype == torch.float64
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert gradient.isfinite().all() and (gradient.abs().amax((1, 2, 3)) > 0).all()
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    h = 1e-6
    with torch.no_grad():
        rise = reward(x + h * direction, prompts) - reward(x - h * direction, prompts)
    expected = (gradient * direction).sum((1, 2, 3))
    # transformers' OWLv2 rounds its logits to single precision, which blurs the difference.
    rtol, atol = (1e-3, 1e-5) if name.startswith("owlv2") else (1e-4, 1e-6)
    torch.testing.assert_close(expected, rise / (2 * h), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["alignment", "colourfulness", "count", "presence", "absence"])
def test_the_gradient_goes_uphill(name: str) -> None:
    """A small step along it raises the reward of nearly all pictures on the model card's sheet."""
    x, prompts = card.pictures().requires_grad_(), card.PROMPTS
    values = make(name)(x, prompts)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    step = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    with torch.no_grad():
        after = make(name)((x + step / 255).clamp(0, 1), prompts)
    assert (after > values).float().mean() > 0.9


def test_listing_rewards_is_light_and_says_unit_and_gradient() -> None:
    code = (
        "import sys, run_benchmark\n"
        "run_benchmark.main(['--list', 'rewards'])\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(kB, negative; black box) [rewards.jpeg]" in done.stdout
    assert "(cosine; differentiable) [rewards.hps]" in done.stdout
    assert "0.7*jpeg+0.3*alignment: " in done.stdout and "my_file.py:score: " in done.stdout
