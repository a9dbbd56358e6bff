"""Synthetic weights of the model rewards, in the published formats and names, but tiny.

And what the tests show them: pictures and prompts.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    Owlv2Config,
    Owlv2ForObjectDetection,
    PreTrainedTokenizerFast,
)

from benchmarks import registry
from rewards import _clip, aesthetic, detector, hps, imagereward
from rewards._clip import OFFICIAL

WORDS = ["<pad>", "<bos>", "a", "cat", "dog", "two", "<unk>", "<eos>"]
LENGTH = 12  # tokens
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}
VISION = TOWER | {"image_size": 224, "patch_size": 56}
TEXT = TOWER | {
    "vocab_size": len(WORDS),
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 7,
}

#: Every reward by a network.
NAMES = [
    *("aesthetic", "aesthetic-alignprop", "clipscore", "hpsv2", "hpsv2-alignprop", "hpsv2.1"),
    *("imagereward", "pickscore"),
]
PROMPTS = ["a cat", "two dog", "a two cat", "dog"]
#: The tokens of PROMPTS.
IDS = torch.tensor([[1, 2, 3, 7, 0], [1, 5, 4, 7, 0], [1, 2, 5, 3, 7], [1, 4, 7, 0, 0]])


def save_tokenizer(folder: Path) -> None:
    """Whole words between <bos> and <eos>."""
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 7)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    ).save_pretrained(folder)


def save_clip(folder: Path, width: int, seed: int) -> None:
    """A random CLIP model as its hub repository has it."""
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=width)
    model = CLIPModel(config)
    for parameter in model.parameters():  # biases too, which are otherwise 0
        parameter.data += 0.1 * torch.randn(parameter.shape)
    model.logit_scale.data.fill_(2.0)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def save_detector(folder: Path) -> None:
    """A random OWLv2 for 64-pixel squares as its hub repository has it."""
    torch.manual_seed(7)
    vision = TOWER | {"image_size": 64, "patch_size": 16}
    model = Owlv2ForObjectDetection(
        Owlv2Config(text_config=TEXT, vision_config=vision, projection_dim=16)
    )
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def linear_head() -> torch.nn.Module:
    """The published head, with the published names."""
    nn = torch.nn
    module = nn.Module()
    module.layers = nn.Sequential(
        *(nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2)),
        *(nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1)),
    )
    for parameter in module.parameters():
        parameter.data *= 4
    return module.eval()


def open_clip_state(width: int = 12) -> dict[str, torch.Tensor]:
    """Random weights with open_clip's names and layout, for the sizes of VISION and TEXT."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    d, wide = TOWER["hidden_size"], TOWER["intermediate_size"]
    state = {
        "positional_embedding": random(LENGTH, d),
        "text_projection": random(d, width),
        "logit_scale": torch.tensor(4.6),
        "token_embedding.weight": random(len(WORDS), d),
        "visual.class_embedding": random(d),
        "visual.positional_embedding": random(17, d),
        "visual.proj": random(d, width),
        "visual.conv1.weight": random(d, 3, 56, 56) / 30,
    }
    for name in ("ln_final", "visual.ln_pre", "visual.ln_post"):
        state |= {f"{name}.weight": 1 + random(d), f"{name}.bias": random(d)}
    for tower in ("", "visual."):
        for i in range(TOWER["num_hidden_layers"]):
            block = f"{tower}transformer.resblocks.{i}."
            for name in ("ln_1", "ln_2"):
                state |= {f"{block}{name}.weight": 1 + random(d), f"{block}{name}.bias": random(d)}
            for name, rows, columns in (
                ("attn.in_proj_", 3 * d, d),
                ("attn.out_proj.", d, d),
                ("mlp.c_fc.", wide, d),
                ("mlp.c_proj.", d, wide),
            ):
                state[f"{block}{name}weight"] = random(rows, columns)
                state[f"{block}{name}bias"] = random(rows)
    return state


def blip_state() -> dict[str, torch.Tensor]:
    """Random weights with the names and layout of ImageReward.pt."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    def linear(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": random(rows, columns) / 3, f"{name}.bias": random(rows)}

    def norm(name: str, size: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": 1 + random(size), f"{name}.bias": random(size)}

    d, wide, words = TOWER["hidden_size"], TOWER["intermediate_size"], 768
    state = {
        "blip.visual_encoder.cls_token": random(1, 1, d),
        "blip.visual_encoder.pos_embed": random(1, 17, d),
        "blip.visual_encoder.patch_embed.proj.weight": random(d, 3, 56, 56) / 30,
        "blip.visual_encoder.patch_embed.proj.bias": random(d),
        "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None],
        "blip.text_encoder.embeddings.word_embeddings.weight": random(len(WORDS), words),
        "blip.text_encoder.embeddings.position_embeddings.weight": random(40, words),
        **norm("blip.visual_encoder.norm", d),
        **norm("blip.text_encoder.embeddings.LayerNorm", words),
        **linear("blip.vision_proj", 256, d),
        **linear("blip.text_proj", 256, words),
        **{f"mlp.{k}": v for k, v in linear_head().state_dict().items()},
    }
    for i in range(2):
        block = f"blip.visual_encoder.blocks.{i}"
        state |= norm(f"{block}.norm1", d) | norm(f"{block}.norm2", d)
        state |= linear(f"{block}.attn.qkv", 3 * d, d) | linear(f"{block}.attn.proj", d, d)
        state |= linear(f"{block}.mlp.fc1", wide, d) | linear(f"{block}.mlp.fc2", d, wide)
        layer = f"blip.text_encoder.encoder.layer.{i}"
        for attention, source in (("attention", words), ("crossattention", d)):
            state |= linear(f"{layer}.{attention}.self.query", words, words)
            state |= linear(f"{layer}.{attention}.self.key", words, source)
            state |= linear(f"{layer}.{attention}.self.value", words, source)
            state |= linear(f"{layer}.{attention}.output.dense", words, words)
            state |= norm(f"{layer}.{attention}.output.LayerNorm", words)
        state |= linear(f"{layer}.intermediate.dense", wide, words)
        state |= linear(f"{layer}.output.dense", words, wide)
        state |= norm(f"{layer}.output.LayerNorm", words)
    return state


def forget() -> None:
    """Make every model reward read its weights again."""
    for read in (_clip.load_clip, aesthetic._head, detector._load, hps._load, imagereward._load):
        read.cache_clear()


@pytest.fixture(scope="session", name="weights")
def fixture_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with weights for every model reward, in use."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, (name, width) in enumerate(
        {"clip-vit-large-patch14": 768, "clip-vit-base-patch32": 12, "PickScore_v1": 12}.items()
    ):
        save_clip(folder / name, width, seed)
    save_detector(folder / "owlv2-base-patch16-ensemble")
    torch.manual_seed(9)
    torch.save(linear_head().state_dict(), folder / aesthetic.HEAD.files[0])
    for hub in (hps.HPSv2.weights, hps.HPSv21.weights):
        state = open_clip_state()
        torch.save({"state_dict": state, "epoch": 1}, folder / hub.files[0])
    torch.save(blip_state(), folder / imagereward.WEIGHTS.files[0])
    for hub in (hps.WORDS, imagereward.WORDS):
        save_tokenizer(folder / hub.repository.split("/")[1])
    text = {"vocab_size": len(WORDS), "hidden_size": 768, "encoder_hidden_size": 16}
    text |= {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNPROP_BENCH_WEIGHTS", str(folder))
        patch.setattr(hps, "VISION", VISION | {"hidden_act": "gelu"})
        patch.setattr(hps, "TEXT", TEXT | {"hidden_act": "gelu"})
        patch.setattr(hps, "WIDTH", 12)
        patch.setattr(imagereward, "VISION", VISION | {"layer_norm_eps": 1e-6})
        more = {"max_position_embeddings": 40, "layer_norm_eps": 1e-12}
        patch.setattr(imagereward, "TEXT", text | more)
        forget()
        yield folder
    forget()


@pytest.fixture(name="damaged")
def fixture_damaged(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A copy of the weights, by links, one of which a test may replace."""
    for path in weights.rglob("*"):
        if path.is_file():
            copy = tmp_path / "copy" / path.relative_to(weights)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    monkeypatch.setenv("ALIGNPROP_BENCH_WEIGHTS", str(tmp_path / "copy"))
    forget()
    yield tmp_path / "copy"
    forget()


def make(name: str, **options: object):
    return registry.rewards.get(name)("cpu", **options)


def smooth(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """8-bit pictures (B, 3, H, W) in [0, 1] with structure of several scales."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.zeros(count, 3, height, width)
    for cells in (2, 5, 11, 40):
        noise = torch.rand(count, 3, cells, cells, generator=generator)
        pictures += F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1) / 4
    return (pictures * 255).round() / 255


def normalised(pictures: Tensor) -> Tensor:
    return OFFICIAL(pictures).double()


def linear_layers(features: Tensor, state: dict[str, Tensor], prefix: str = "") -> Tensor:
    for i in (0, 2, 4, 6, 7):
        weight, bias = (state[f"{prefix}layers.{i}.{n}"].double() for n in ("weight", "bias"))
        features = features @ weight.T + bias
    return features[:, 0]


def close(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value.double(), expected, atol=2e-5, rtol=1e-4)
