"""What holds for every preset and every registered method."""

import pytest

from benchmarks import registry
from benchmarks.config import load_preset, method_config

PRESETS = registry.backbones.names()
METHODS = registry.methods.names()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_methods_train_with_the_guidance_they_are_evaluated_with(preset: str, method: str):
    """What is learnt without guidance, guidance distorts."""
    settings = load_preset(preset)
    config, _ = method_config(method, settings)
    assert config.guidance == settings.evaluation.guidance
