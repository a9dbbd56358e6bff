"""What all families share: what is trained, guidance, the base model, half precision."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import tiny_pipeline
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from benchmarks.api import UserError
from benchmarks.backbone import load
from benchmarks.backbone.base import BaseBackbone
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.streams import Streams

PROMPTS = ["cat", "dog"]


@pytest.fixture
def latents(backbone: StableDiffusion) -> torch.Tensor:
    return Streams(0).normal("noise", 0, range(2), backbone.latent_shape)


def output(backbone: BaseBackbone, latents: torch.Tensor, guidance: float = 1.0) -> torch.Tensor:
    with torch.no_grad():
        return backbone.predict(latents, 500, backbone.encode(PROMPTS), guidance)


def test_without_the_matrices_it_is_the_base_model(backbone, latents, compared):
    adapted, unet = output(backbone, latents), tiny_pipeline().unet
    with torch.no_grad():
        expected = unet(latents, 500, *backbone.encode(PROMPTS)).sample
    with pytest.raises(KeyError), backbone.adapting(False):
        compared("base model", output(backbone, latents), expected, 1e-5)
        raise KeyError
    assert torch.equal(output(backbone, latents), adapted)
    assert (adapted - expected).abs().max() > 1e-2 * expected.abs().max()
    with backbone.adapting(True):
        assert torch.equal(output(backbone, latents), adapted)


def test_where_all_weights_train_the_base_model_is_gone(latents):
    model = StableDiffusion(tiny_pipeline(), Ledger(), rank=0)
    assert {id(p) for p in model.parameters()} == {id(p) for p in model.denoiser.parameters()}
    assert len(model.parameters()) == len(list(tiny_pipeline().unet.parameters()))
    assert all(p.requires_grad for p in model.parameters())
    others = [model.autoencoder, *model.others]
    assert not any(p.requires_grad for module in others for p in module.parameters())
    with model.adapting(True):
        output(model, latents)
    with pytest.raises(UserError, match="the base model is gone"), model.adapting(False):
        pass


@pytest.mark.parametrize("rank", [4, 0])
def test_an_earlier_policy_predicts_and_goes(latents, rank: int):
    model = StableDiffusion(tiny_pipeline(), Ledger(), rank=rank)
    earlier = [parameter.detach().clone() for parameter in model.parameters()]
    first = output(model, latents)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    kept = model.predict(latents, 500, model.encode(PROMPTS), 1.0)
    with pytest.raises(KeyError), model.with_weights(earlier):
        assert torch.equal(output(model, latents), first)
        raise KeyError
    assert torch.equal(output(model, latents), kept) and not torch.equal(kept, first)
    kept.sum().backward()  # a graph from before is as good as new
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_with_matrices_only_they_train(backbone):
    trained = {n for n, p in backbone.denoiser.named_parameters() if p.requires_grad}
    ends = [f".{end}.lora_" for end in backbone.targets]
    assert trained and all(any(end in name for end in ends) for name in trained)
    assert len(backbone.parameters()) == len(trained)


def test_guidance_goes_from_the_empty_prompt_to_the_prompt(backbone, latents, compared):
    with torch.no_grad():
        without, conditioned = (
            backbone.predict(latents, 500, backbone.encode(prompts), 1.0)
            for prompts in (["", ""], PROMPTS)
        )
    assert not torch.allclose(without, conditioned)
    expected = without + 2.5 * (conditioned - without)
    compared("guided", output(backbone, latents, 2.5), expected, 1e-5)
    assert torch.equal(output(backbone, latents, 0.5), conditioned)  # no guidance below 1


def test_a_prompt_is_encoded_once(backbone, monkeypatch):
    asked: list[str] = []
    conditions = backbone.conditions

    def counting(prompts: Sequence[str]) -> tuple[torch.Tensor, ...]:
        asked.extend(prompts)
        return conditions(prompts)

    monkeypatch.setattr(backbone, "conditions", counting)
    (text,) = backbone.encode(["fox", "cow", "fox"])
    assert torch.equal(text[0], text[2]) and not torch.equal(text[0], text[1])
    (again,) = backbone.encode(["cow"])
    assert torch.equal(again[0], text[1]) and asked == ["fox", "cow"]


@pytest.mark.parametrize("rank", [4, 0])
def test_weights_are_a_copy_that_can_be_loaded(rank: int, latents):
    model = StableDiffusion(tiny_pipeline(), Ledger(), rank=rank)
    weights, before = model.weights(), output(model, latents)
    assert all("lora_" in name for name in weights) == bool(rank)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    assert not torch.allclose(output(model, latents), before)
    model.load_weights(weights)
    assert torch.equal(output(model, latents), before)
    found = model.weights()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_lora_has_the_papers_size_on_sd15_shapes():
    """Rank 4 on the attention projections of SD v1.5: 797,184 parameters, without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        unet.requires_grad_(False)
        unet.add_adapter(LoraConfig(r=4, target_modules=list(BaseBackbone.targets)))
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == 797_184


def gradient(folder: Path, precision: str, scale: float) -> torch.Tensor:
    """Of ``scale`` times a sum of pixels, through the decoder and two sampling steps of three."""
    model = load(str(folder), Ledger(), precision, keep="latents")
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    noise = Streams(0).normal("noise", 0, range(2), model.latent_shape)
    trajectory = model.sample(
        model.sampler(3),
        ["cat", "dog"],
        noise,
        guidance=2.0,
        gradient=[False, True, True],
    )
    images = model.decode(trajectory.final)
    assert images.dtype == trajectory.final.dtype == torch.float32
    (scale * images.sum()).backward()
    found = [p.grad for p in model.parameters()]
    assert all(g.dtype == torch.float32 for g in found)
    return torch.cat([g.flatten() for g in found]) / scale


@pytest.fixture(scope="module")
def exact(tiny_folder: Path) -> torch.Tensor:
    return gradient(tiny_folder, "fp32", 1.0)


# Rewards averaged over a batch and weighted have small gradients: 1e-9 is below float16's range.
@pytest.mark.parametrize("scale", [1.0, 1e-9])
@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.15), ("fp16", 0.08)])
def test_half_precision_gives_the_gradient(precision, error, scale, tiny_folder, exact):
    found = gradient(tiny_folder, precision, scale)
    assert (found - exact).norm() < error * exact.norm()
