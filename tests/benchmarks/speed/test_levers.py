"""Fast paths give what plain ones give, and are faster."""

import pytest

from benchmarks.speed import clock, levers
from benchmarks.streams import Streams

BATCH, STEPS = 2, 4


def test_every_lever_leaves_the_gradient_as_it_is(tiny_models, gradients, monkeypatch, compared):
    generator = Streams.generator
    monkeypatch.setattr(  # the same noise in every step
        Streams, "generator", lambda self, purpose, step, i=0: generator(self, purpose, 0, i)
    )
    pairs = levers.pairs(BATCH, STEPS) | levers.large() | levers.half(BATCH, STEPS)
    assert len(pairs) == 21
    for name, (fast, plain) in pairs.items():
        if "not done" not in name:
            gradients.clear()
            fast()
            plain()
            compared(name, *gradients, 0.1 if "bf16" in name else 1e-4)


def test_what_saves_a_third_of_the_passes_saves_time(tiny_models):
    """A third is saved, so 1.33 is expected."""
    pairs = levers.pairs(BATCH, STEPS)
    for name in (
        "all kept instead of latents (AlignProp, full)",
        "forward passes of sampling kept (DDPO)",
    ):
        fast, plain = pairs[name]
        seconds = clock.in_turns({"fast": fast, "plain": plain}, 5)
        assert clock.ratio(seconds, "plain", "fast")["median"] > 1.05, name


def test_an_attribute_is_replaced_for_a_while():
    class Owner:
        own = 1

    owner = Owner()
    with pytest.raises(KeyError), levers.replaced(owner, "own", 2):
        assert owner.own == 2 and Owner.own == 1
        raise KeyError
    assert owner.own == 1 and "own" not in vars(owner)  # the class's again
    owner.own = 3
    with levers.replaced(owner, "own", 4):
        assert owner.own == 4
    assert owner.own == 3
