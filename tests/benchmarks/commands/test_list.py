"""What is known, and under which heading."""

import pytest

import run_benchmark
from benchmarks import registry


def test_methods_stand_under_what_they_need(capsys: pytest.CaptureFixture[str]):
    assert run_benchmark.main(["list", "methods"]) == 0
    gradient, value = capsys.readouterr().out.split("methods that need the reward's value only")
    assert gradient.startswith("methods that need the gradient of the reward:\n")
    for name in registry.methods.names():
        group = gradient if "reward_grad" in registry.methods.get(name).needs else value
        assert f"\n  {name} " in group, name
    assert "\n  alignprop " in gradient and "\n  diffusion-nft " in value


def test_a_black_box_with_a_gradient_method_says_what_to_do(capsys: pytest.CaptureFixture[str]):
    assert run_benchmark.main(["--methods", "refl", "--reward", "jpeg-incompressibility"]) == 2
    error = capsys.readouterr().err
    assert "use one of " in error and "or a method that needs its value only: " in error
    names = error.strip().rpartition("only: ")[2].split(", ")
    assert {"ddpo", "grpo", "rwr"} <= set(names) and "ddpo-sf" not in names
    assert not any("reward_grad" in registry.methods.get(name).needs for name in names)
