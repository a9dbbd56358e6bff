"""Every registered method keeps the contract; the contract catches methods that do not."""

from dataclasses import dataclass, field, replace
from unittest.mock import patch

import pytest
import torch

from benchmarks import registry
from benchmarks.api import Context, Sampling, StepResult, UserError
from benchmarks.conformance import contract
from methods import refl
from methods.refl import ReFL
from methods.rwr import RWR

pytestmark = pytest.mark.usefixtures("tiny_contract")


#: A variant is another configuration of the same code: what depends on that is checked of it, too.
OF_VARIANTS = ("configuration", "two_steps_are_finite", "ledger_equals_spy")
CASES = [
    (name, check)
    for name in registry.methods.names()
    for check in (OF_VARIANTS if name in registry.methods.variants else contract.CHECKS)
]


@pytest.mark.parametrize(("name", "check"), CASES)
def test_every_method(name: str, check: str):
    contract.CHECKS[check](name)


class ChangesTheBase(ReFL):
    def step(self, step: int) -> StepResult:
        with torch.no_grad():
            self.context.backbone.denoiser.conv_in.bias += 1e-3
        return super().step(step)


class UsesGlobalRandomness(ReFL):
    def step(self, step: int) -> StepResult:
        with torch.no_grad():
            for parameter in self.optimizer.parameters:
                parameter += 0.1 * torch.rand(())
        return super().step(step)


class Forgets(ReFL):
    def state_dict(self):
        return {}

    def load_state_dict(self, state) -> None:
        pass


class GoesBehindTheBack(ReFL):
    def step(self, step: int) -> StepResult:
        backbone = self.context.backbone
        with torch.no_grad():
            backbone.denoiser.forward(
                torch.zeros(1, *backbone.latent_shape), 0, *backbone.encode(["cat"])
            )
        return super().step(step)


class HidesItsNeeds(ReFL):
    needs = frozenset({"reward"})


class ClaimsTooMuch(RWR):
    needs = frozenset({"reward_grad"})


class DividesByItsMicroBatch(ReFL):
    def backward(self, step, chosen, part, prompts):
        found = super().backward(step, chosen, part, prompts)
        for parameter in self.optimizer.parameters:
            parameter.grad *= len(part)
        return found


class NotFinite(ReFL):
    def step(self, step: int) -> StepResult:
        return StepResult(reward=float("nan"), loss=0.0, grad_norm=0.0)


class KeepsHiddenState(ReFL):
    def __init__(self, config, context) -> None:
        super().__init__(config, context)
        self.passes = 0
        context.backbone.denoiser.register_forward_hook(lambda *_: self.saw_a_pass())

    def saw_a_pass(self) -> None:
        self.passes += 1

    def step(self, step: int) -> StepResult:
        with torch.no_grad():
            for parameter in self.optimizer.parameters:
                parameter += 1e-3 * self.passes
        return super().step(step)


class ErasesItsTraces(ReFL):
    def step(self, step: int) -> StepResult:
        result = super().step(step)
        self.context.backbone.ledger.counts.clear()
        return result


class DoesEverythingInEveryProcess(ReFL):
    def step(self, step: int) -> StepResult:
        with patch.object(refl, "micro_batches", lambda items, size: [items]):
            return super().step(step)


class CannotBeSaved(ReFL):
    def state_dict(self):
        return {"generator": torch.Generator()}


class WantsTheMoon(ReFL):
    needs = frozenset({"moon"})


class IsNotFrozen(ReFL):
    @dataclass
    class Config:
        rate: float = 1.0


class HasNoDefault(ReFL):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        rate: float


class DoesNotExplain(ReFL):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        rate: float = 1.0
        size: int = 1
        """samples [ours]"""


class InheritsNothing(ReFL):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        rate: float = field(default=1.0, metadata={"help": "how fast [ours]"})


class HasAFieldThatTomlCannotSay(ReFL):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        rate: complex = field(default=1, metadata={"help": "how fast [ours]"})


@pytest.mark.parametrize(
    ("cls", "check", "message"),
    [
        (IsNotFrozen, "configuration", "frozen=True"),
        (HasNoDefault, "configuration", "every field of Config needs a default"),
        (DoesNotExplain, "configuration", "say what rate means"),
        (HasAFieldThatTomlCannotSay, "configuration", "rate must be complex"),
        (ChangesTheBase, "only_what_is_trained_moves", "a frozen weight changed"),
        (NotFinite, "only_what_is_trained_moves", "no trained weight changed"),
        (NotFinite, "two_steps_are_finite", "reward is nan"),
        (UsesGlobalRandomness, "same_seed_same_result", r"context\.streams"),
        (Forgets, "resuming_changes_nothing", r"state_dict\(\) misses something"),
        (CannotBeSaved, "resuming_changes_nothing", "may not hold a Generator"),
        (KeepsHiddenState, "evaluation_changes_nothing", "keep no hidden state"),
        (ErasesItsTraces, "a_budget_is_kept", "leave the ledger alone"),
        (DoesEverythingInEveryProcess, "two_processes_equal_one", "loop over"),
        (WantsTheMoon, "needs_are_honest", "needs must be"),
        (InheritsNothing, "two_steps_are_finite", "let Config inherit Batch"),
        (GoesBehindTheBack, "ledger_equals_spy", "call the module"),
        (HidesItsNeeds, "needs_are_honest", "add 'reward_grad'"),
        (DividesByItsMicroBatch, "micro_batches_change_memory_only", "micro-batches of 2 give"),
        (ClaimsTooMuch, "needs_are_honest", "needs should say 'reward'"),
    ],
)
def test_it_catches(cls: type, check: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.methods.entries, "broken", cls)
    with pytest.raises((contract.Broken, UserError), match=message):
        contract.CHECKS[check]("broken")


class DrawsRollouts(ReFL):
    """Its set has a name of its own, and the checks are told how to make it small."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Sampling):
        rollouts: int = field(default=4096, metadata={"help": "samples drawn [ours]"})

        @property
        def update_size(self) -> int:
            return self.rollouts

        def resized(self, update_size: int) -> "DrawsRollouts.Config":
            return replace(self, rollouts=update_size)

    def __init__(self, config: Config, context: Context) -> None:
        steps = config.sampling_steps
        sampling = {k: getattr(config, k) for k in ("micro_batch", "sampling_steps", "guidance")}
        drawn = {"batch_size": config.rollouts, "earliest": steps - 2, "latest": steps - 1}
        super().__init__(refl.Config(**sampling, **drawn), context)


class DoesNotSayHowMany(DrawsRollouts):
    @dataclass(frozen=True, kw_only=True)
    class Config(Sampling):
        rollouts: int = field(default=4096, metadata={"help": "samples drawn [ours]"})


def test_a_set_by_any_name_is_made_small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.methods.entries, "rollouts", DrawsRollouts)
    assert contract.small_config("rollouts").rollouts == contract.SAMPLES
    contract.CHECKS["two_steps_are_finite"]("rollouts")
    monkeypatch.setitem(registry.methods.entries, "rollouts", DoesNotSayHowMany)
    with pytest.raises(contract.Broken, match="give it the property update_size"):
        contract.CHECKS["two_steps_are_finite"]("rollouts")


def test_every_check_can_fail():
    marks = test_it_catches.pytestmark
    (cases,) = (mark.args[1] for mark in marks if mark.name == "parametrize")
    assert {check for _, check, _ in cases} == set(contract.CHECKS)
