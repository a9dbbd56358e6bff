"""Alignment with a tiny random CLIP model and a tokenizer written to a temporary folder."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from synthetic import TEXT, TOWER, save_tokenizer
from transformers import CLIPConfig, CLIPModel

from benchmarks.api import UserError
from rewards.alignment import Alignment

SIDE = 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=TEXT,
        vision_config=TOWER | {"image_size": SIDE, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    statistics = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    return tmp_path


def pictures(count: int, side: int = SIDE) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_is_the_cosine_of_the_models_own_embeddings(folder: Path) -> None:
    x = pictures(2)
    reward = Alignment("cpu", folder=folder)(x, ["a cat", "two dog"])
    mean = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    std = torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor([[1, 2, 3, 7], [1, 5, 4, 7]]), pixel_values=(x - mean) / std
        )
    torch.testing.assert_close(reward, (output.image_embeds * output.text_embeds).sum(1))


def test_a_damaged_folder_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or truncated"):
        Alignment("cpu", folder=folder)(pictures(1), ["a cat"])


def test_gradient_reaches_pixels_and_nothing_else(folder: Path) -> None:
    x = pictures(2, 48).requires_grad_()
    Alignment("cpu", folder=folder)(x, ["a cat", "a dog"]).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_resizes_bicubically_with_antialias(folder: Path) -> None:
    large = pictures(1, 50)
    small = F.interpolate(large, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    reward = Alignment("cpu", folder=folder)
    torch.testing.assert_close(reward(large, ["a cat"]), reward(small, ["a cat"]))


def test_prompts_neither_interact_nor_overflow(folder: Path) -> None:
    reward, x = Alignment("cpu", folder=folder), pictures(1).expand(2, -1, -1, -1)
    prompts = ["a cat", "two dog " * 30]
    single = torch.cat([reward(x[:1], [prompt]) for prompt in prompts])
    torch.testing.assert_close(reward(x, prompts), single)


def test_a_folder_without_a_model_or_statistics_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        Alignment("cpu", folder=folder)(pictures(1), ["a cat"])
    with pytest.raises(UserError, match="not the folder of a CLIP model"):
        Alignment("cpu", folder=tmp_path / "nowhere")(pictures(1), ["a cat"])
