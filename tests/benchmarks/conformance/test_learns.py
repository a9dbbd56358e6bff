"""Every registered method learns; learning that is none is caught."""

from dataclasses import replace

import pytest

from benchmarks import registry
from benchmarks.api import StepResult
from benchmarks.conformance import contract, learns
from benchmarks.conformance.learns import Trial
from methods.refl import ReFL
from methods.rwr import RWR

pytestmark = pytest.mark.usefixtures("tiny_contract")

#: Regression on a model's own pictures moves slowly: large sets and batches, pictures from as many
#: sampling steps as the model needs, and eight times the work.
PATIENT = Trial(
    sampling_steps=20,
    change=lambda config: replace(
        config,
        samples_per_round=256,
        updates_per_round=200,
        batch_size=64,
        micro_batch=64,
        guidance=1.0,
        beta=0.15,  # rewards of one prompt's pictures differ by about 10, the preset's by 0.3
    ),
    stride=3,
    flops=2.28e13,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.methods.names())
def test_every_method_learns_on_the_embedded_model(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()  # not on the tiny model
    learns.learns(name, PATIENT if issubclass(registry.methods.get(name), RWR) else None)


class ClimbsDown(ReFL):
    def step(self, step: int) -> StepResult:
        reward = self.context.reward
        object.__setattr__(self.context, "reward", lambda images, prompts: -reward(images, prompts))
        result = super().step(step)
        object.__setattr__(self.context, "reward", reward)
        return result


class Darkens(ReFL):
    """Learns the same whatever the reward says."""

    def step(self, step: int) -> StepResult:
        dark = lambda images, prompts: -100 * images.mean((1, 2, 3))  # noqa: E731
        object.__setattr__(self.context, "reward", dark)
        return super().step(step)


def test_it_catches_learning_that_does_not_depend_on_the_reward(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.methods.entries, "broken", Darkens)
    with pytest.raises(contract.Broken, match="over the control"):
        learns.learns("broken", Trial(flops=2e8))


def test_it_catches_a_wrong_sign(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.methods.entries, "broken", ClimbsDown)
    with pytest.raises(contract.Broken, match="right sign"):
        learns.learns("broken", Trial(flops=2e8))
