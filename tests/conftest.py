"""Shared fixtures: tiny random models, so that tests need no downloads and little time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks import registry
from benchmarks.api import Context, Reward, Scale
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.conformance import contract
from benchmarks.forecast.meta_model import MetaModel
from benchmarks.harness import loop
from benchmarks.optim import Optimizer
from benchmarks.speed import models
from benchmarks.streams import Streams

torch.set_num_threads(1)  # the models are tiny, and several threads get in each other's way


@pytest.fixture
def compared(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Check the largest difference relative to the largest value; it is said in the summary."""

    def compare(what: str, ours: torch.Tensor, reference: torch.Tensor, tolerance: float) -> None:
        error = float((ours - reference).abs().max() / reference.abs().max())
        record_property("compared", f"{what}: {error:.1e} off, {tolerance:.0e} allowed")
        assert reference.abs().max() > 0 and error < tolerance

    return compare


#: What tests say with ``record_property`` -> the summary's heading.
SAID = {"compared": "relative differences to references", "tried": "faults tried, nothing lost"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How close our results came to references, and which faults were tried."""
    for said, heading in SAID.items():
        lines = [
            f"{report.nodeid.removeprefix('tests/')}: {text}"
            for report in terminalreporter.getreports("passed")
            for name, text in report.user_properties
            if name == said
        ]
        if lines:
            terminalreporter.section(heading)
            terminalreporter.write_line("\n".join(sorted(lines)))


def tiny_tokenizer() -> CLIPTokenizer:
    """A token per letter, at most 16 of them."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    symbols = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)


def tiny_text(cls: Any = CLIPTextModel, **changes: Any) -> Any:
    """A random CLIP text encoder, 16 numbers per token."""
    settings = {
        "vocab_size": 54,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": 52,
        "eos_token_id": 53,
        "pad_token_id": 53,
    }
    return cls(CLIPTextConfig(**settings | changes))


def tiny_vae(channels: int = 4, **changes: Any) -> AutoencoderKL:
    """A random autoencoder that halves the sides of pictures."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=16,
        **changes,
    )


def tiny_unet(**changes: Any) -> UNet2DConditionModel:
    """A random U-Net for 8x8 latents."""
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**settings | changes)


def tiny_scheduler(**changes: Any) -> DDIMScheduler:
    """Stable Diffusion's."""
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**settings | changes)


def tiny_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """A random Stable Diffusion: 16-pixel images, 4 latent channels at 8x8, epsilon prediction."""
    torch.manual_seed(seed)
    return StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text(),
        tokenizer=tiny_tokenizer(),
        unet=tiny_unet(),
        scheduler=tiny_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline as a diffusers folder, and a task of few prompts, ``few.toml``.

    ``quick.toml`` is the same model, evaluated with two sampling steps.
    """
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline().save_pretrained(folder)
    (folder / "quick.toml").write_text(
        f'model = "{folder}"\nlike = "emoji"\n[evaluation]\nsampling_steps = 2\n'
    )
    (folder / "few.toml").write_text(
        'train = ["cat", "dog", "horse", "monkey"]\nunseen = ["snail", "cheetah"]\n'
        'held_out = ["alignment"]\n'
        "[evaluation]\ntrain_every = 3\ntrain_images = 1\nunseen_images = 2\n"
    )
    return folder


@pytest.fixture
def backbone() -> StableDiffusion:
    """The tiny pipeline with LoRA matrices that are all non-zero."""
    model = StableDiffusion(tiny_pipeline(), Ledger())
    model.price()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="session")
def tiny_lora() -> tuple[StableDiffusion, dict[str, torch.Tensor]]:
    """The tiny pipeline with fresh LoRA matrices, and these."""
    model = StableDiffusion(tiny_pipeline(), Ledger())
    model.price()
    return model, model.weights()


@pytest.fixture
def tiny_contract(tiny_lora, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract of methods on the tiny pipeline instead of the embedded one."""
    monkeypatch.setattr(contract, "model", lambda: tiny_lora)
    monkeypatch.setattr(contract, "BACKBONE", str(tiny_folder))


@pytest.fixture(scope="session")
def tiny_meta(tiny_folder: Path) -> MetaModel:
    """The tiny pipeline as the planner sees it."""
    return MetaModel(str(tiny_folder), "fp32")


@pytest.fixture
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """All measurements of speed on the tiny pipeline."""
    for name in models.MODELS:
        monkeypatch.setitem(models.MODELS, name, tiny_pipeline)


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten afterwards."""
    for known in registry.KINDS.values():
        for name in known.names():
            known.get(name)
        for table in ("entries", "origins", "summaries", "variants"):
            monkeypatch.setattr(known, table, dict(getattr(known, table)))


@pytest.fixture(autouse=True)
def nothing_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs keep all activations: to plan each of them takes longer than to run the tiny model."""
    monkeypatch.setattr(loop, "choose", lambda *arguments: "all")


class Greyness(Reward):
    """A smooth toy reward: minus the mean squared distance to a grey of 0.3, per picture."""

    unit, reference, differentiable = "squared pixel range, negative", "toy", True

    def __init__(self, device: object = "cpu") -> None:
        pass

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        assert len(images) == len(prompts)
        return -((images - 0.3) ** 2).mean((1, 2, 3))


@pytest.fixture
def context(backbone: StableDiffusion) -> Context:
    """Everything a method is handed, over the tiny model and the toy reward."""
    names = ["cat", "dog", "fox"]
    return Context(
        backbone=backbone,
        reward=backbone.ledger.counted(Greyness()),
        prompts=lambda step, count: [names[i % 3] for i in range(count)],
        streams=Streams(0),
        scale=lambda: Scale(mean=-0.1, deviation=0.05),
    )


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Of every optimizer step, which then moves nothing."""
    found: list[torch.Tensor] = []

    def step(optimizer: Optimizer) -> float:
        found.append(torch.cat([p.grad.clone().flatten() for p in optimizer.parameters]))
        optimizer.adamw.zero_grad()
        return 0.0

    monkeypatch.setattr(Optimizer, "step", step)
    return found
