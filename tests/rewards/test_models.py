"""Model rewards on tiny weights in the published formats, against independent references."""

import os
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import spearmanr
from synthetic import (  # noqa: F401
    LENGTH,
    TOWER,
    WORDS,
    fixture_weights,
    forget,
    linear_head,
    open_clip_state,
)
from torch import Tensor
from transformers import (
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
)

from benchmarks import registry
from benchmarks.api import UserError
from rewards import hps, imagereward
from rewards._clip import ALIGNPROP, MEAN, OFFICIAL, SIDE, STD

REAL_HPS, REAL_BLIP = (hps.VISION, hps.TEXT), (imagereward.VISION, imagereward.TEXT)

NAMES = [
    *("aesthetic", "aesthetic-alignprop", "clipscore", "hpsv2", "hpsv2-alignprop", "hpsv2.1"),
    *("imagereward", "pickscore"),
]
PROMPTS = ["a cat", "two dog", "a two cat", "dog"]
IDS = torch.tensor([[1, 2, 3, 7, 0], [1, 5, 4, 7, 0], [1, 2, 5, 3, 7], [1, 4, 7, 0, 0]])


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


# Preprocessing


@pytest.mark.parametrize("shape", [(512, 512), (512, 768), (301, 257), (64, 64), (224, 224)])
def test_official_preprocessing_is_that_of_pil(shape: tuple[int, int]) -> None:
    """Within one and a half levels of 255 anywhere: PIL rounds to 8 bits after each direction."""
    pictures = smooth(2, *shape)
    arrays = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    expected = CLIPImageProcessorPil()([Image.fromarray(a) for a in arrays], return_tensors="pt")
    difference = (OFFICIAL(pictures) - expected["pixel_values"]) * torch.tensor(STD).view(3, 1, 1)
    assert difference.abs().max() * 255 < 1.5
    assert difference.abs().mean() * 255 < 0.5


def bilinear(picture: np.ndarray, side: int) -> np.ndarray:
    """(H, H) sampled at side x side points between the four nearest pixels."""
    at = ((np.arange(side) + 0.5) * len(picture) / side - 0.5).clip(0, len(picture) - 1)
    low = np.floor(at).astype(int)
    high, share = np.minimum(low + 1, len(picture) - 1), at - low
    rows = picture[low] * (1 - share[:, None]) + picture[high] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, high] * share


def test_alignprops_preprocessing_is_bilinear_sampling() -> None:
    pictures = smooth(1, 512, 512)
    expected = np.stack([bilinear(plane.double().numpy(), SIDE) for plane in pictures[0]])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(
        (ALIGNPROP(pictures) * std + mean)[0].double(),
        torch.from_numpy(expected),
        atol=1e-5,
        rtol=0,
    )


def test_the_two_ways_differ_and_are_recorded(weights: Path) -> None:
    pictures = smooth(4, 512, 512) * 0.5 + 0.5 * torch.rand(4, 3, 512, 512)
    official, alignprop = make("aesthetic"), make("aesthetic-alignprop")
    change = (official(pictures, PROMPTS) - alignprop(pictures, PROMPTS)).abs()
    assert (change > 1e-3).all()
    assert "bicubic with antialias" in official.recorded
    assert "bilinear without antialias" in alignprop.recorded


# Scores


def normalised(pictures: Tensor) -> Tensor:
    return OFFICIAL(pictures).double()


def double(path: Path) -> CLIPModel:
    return CLIPModel.from_pretrained(path).double().eval()


def clip_cosine(path: Path, pixels: Tensor, ids: Tensor) -> Tensor:
    with torch.no_grad():
        output = double(path)(pixel_values=pixels, input_ids=ids, attention_mask=ids != 0)
    return (output.image_embeds * output.text_embeds).sum(1)


def linear_layers(features: Tensor, state: dict[str, Tensor], prefix: str = "") -> Tensor:
    for i in (0, 2, 4, 6, 7):
        weight, bias = (state[f"{prefix}layers.{i}.{n}"].double() for n in ("weight", "bias"))
        features = features @ weight.T + bias
    return features[:, 0]


def test_aesthetic(weights: Path) -> None:
    pictures = smooth(4, 100, 100)
    with torch.no_grad():
        output = double(weights / "clip-vit-large-patch14").get_image_features(normalised(pictures))
    state = torch.load(weights / "sac+logos+ava1-l14-linearMSE.pth")
    features = output.pooler_output / output.pooler_output.norm(dim=1, keepdim=True)
    expected = linear_layers(features, state)
    assert expected.std() > 1e-3
    close(make("aesthetic")(pictures, PROMPTS), expected)


def test_pickscore(weights: Path) -> None:
    pictures = smooth(4, 100, 100)
    cosine = clip_cosine(weights / "PickScore_v1", normalised(pictures), IDS)
    close(make("pickscore")(pictures, PROMPTS), np.exp(2.0) * cosine)


def test_clipscore(weights: Path) -> None:
    pictures = smooth(8, 100, 100)
    ids = torch.tensor([[1, 6, 6, 6, 2, 3, 7], [1, 6, 6, 6, 5, 4, 7]] * 4)  # A photo depicts ...
    cosine = clip_cosine(weights / "clip-vit-base-patch32", normalised(pictures), ids)
    assert cosine.min() < 0 < cosine.max()
    words = ["a cat", "two dog"] * 4
    # The tokenizer here does not know "A photo depicts", but its <unk> has the same length.
    close(make("clipscore")(pictures, words), 2.5 * cosine.clamp(min=0))


def close(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value.double(), expected, atol=2e-5, rtol=1e-4)


def transformer(x: Tensor, state: dict[str, Tensor], prefix: str, causal: bool) -> Tensor:
    """open_clip's residual attention blocks, from its weights."""
    d = x.shape[-1]
    mask = torch.full((x.shape[1],) * 2, -torch.inf).triu(1).double() if causal else None

    def norm(y: Tensor, name: str) -> Tensor:
        return F.layer_norm(y, (d,), w[f"{name}.weight"], w[f"{name}.bias"])

    for i in range(2):
        start = f"{prefix}transformer.resblocks.{i}."
        w = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        attention = torch.nn.MultiheadAttention(d, 2, batch_first=True).double().eval()
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        attention.load_state_dict({n: w[f"attn.{n}"] for n in names})
        y = norm(x, "ln_1")
        x = x + attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = F.gelu(F.linear(norm(x, "ln_2"), w["mlp.c_fc.weight"], w["mlp.c_fc.bias"]))
        x = x + F.linear(y, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"])
    return x


def open_clip_cosine(state: dict[str, Tensor], pixels: Tensor, ids: Tensor) -> Tensor:
    """The score of HPSv2, written from open_clip's names."""
    state = {name: value.double() for name, value in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    x = F.conv2d(pixels, state["visual.conv1.weight"], stride=56).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + state["visual.positional_embedding"]
    x = transformer(norm(x, "visual.ln_pre"), state, "visual.", causal=False)
    image = norm(x[:, 0], "visual.ln_post") @ state["visual.proj"]
    y = state["token_embedding.weight"][ids] + state["positional_embedding"][: ids.shape[1]]
    y = norm(transformer(y, state, "", causal=True), "ln_final")
    text = y[torch.arange(len(y)), (ids == 7).int().argmax(1)] @ state["text_projection"]
    return F.cosine_similarity(image, text)


@torch.no_grad()
def test_hpsv2_is_open_clips_model(weights: Path) -> None:
    pictures = smooth(4, 100, 100)
    expected = open_clip_cosine(open_clip_state(), normalised(pictures), IDS)
    for name in ("hpsv2", "hpsv2.1"):
        close(make(name)(pictures, PROMPTS), expected)


@pytest.mark.parametrize("package", ["open_clip", "hpsv2.src.open_clip"])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of timm, which hpsv2 imports
@torch.no_grad()
def test_hpsv2_is_the_packages_own_model(package: str, weights: Path) -> None:
    """The model class of open_clip_torch, and that of the hpsv2 wheel, with the same weights.

    Neither is needed otherwise. The wheel lacks the vocabulary that importing its package reads
    (tgxs002/HPSv2#30), so its package is entered without running its ``__init__``.
    """
    pytest.importorskip("torchvision", exc_type=Exception, reason="the packages import it")
    top, *inner = package.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        pytest.skip(f"{top} is not installed")
    entered = ModuleType(f"without_init_{top}")
    entered.__path__ = [str(Path(spec.origin).parent.joinpath(*inner))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, entered.__name__, entered)
        kind = import_module(f"{entered.__name__}.model").CLIP
    d, heads = TOWER["hidden_size"], TOWER["num_attention_heads"]
    both = {"width": d, "layers": 2}
    model = kind(
        embed_dim=12,
        vision_cfg=both | {"head_width": d // heads, "patch_size": 56, "image_size": 224},
        text_cfg=both | {"heads": heads, "context_length": LENGTH, "vocab_size": len(WORDS)},
    )
    state, more = open_clip_state(), 4 * d - TOWER["intermediate_size"]
    for name, value in state.items():  # hpsv2's layers are 4 d wide: units of no effect
        if ".c_fc." in name:
            state[name] = F.pad(value, (*[0, 0] * (value.ndim - 1), 0, more))
        elif name.endswith(".c_proj.weight"):
            state[name] = F.pad(value, (0, more))
    model.load_state_dict(state)
    pictures = smooth(4, 100, 100)
    image = model.eval().encode_image(OFFICIAL(pictures), normalize=True)
    text = model.encode_text(F.pad(IDS, (0, LENGTH - IDS.shape[1])), normalize=True)
    ours = make("hpsv2")(pictures, PROMPTS)
    torch.testing.assert_close(ours, (image * text).sum(1), atol=1e-6, rtol=0)


def blip(state: dict[str, Tensor], pixels: Tensor, ids: Tensor) -> Tensor:
    """The score of ImageReward, written from BLIP's names."""
    state = {n: v.double() for n, v in state.items() if v.is_floating_point()}

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str, epsilon: float) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q, k, v))
        weights = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            weights = weights.masked_fill(~mask[:, None, None], -torch.inf)
        return (weights.softmax(-1) @ v).transpose(1, 2).flatten(2)

    vit, bert = "blip.visual_encoder", "blip.text_encoder"
    patches = F.conv2d(pixels, state[f"{vit}.patch_embed.proj.weight"], stride=56)
    patches = patches + state[f"{vit}.patch_embed.proj.bias"].view(-1, 1, 1)
    x = patches.flatten(2).transpose(1, 2)
    x = torch.cat([state[f"{vit}.cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + state[f"{vit}.pos_embed"]
    for i in range(2):
        block = f"{vit}.blocks.{i}"
        q, k, v = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v), f"{block}.attn.proj")
        y = linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")
        x = x + linear(F.gelu(y), f"{block}.mlp.fc2")
    seen = norm(x, f"{vit}.norm", 1e-6)
    y = state[f"{bert}.embeddings.word_embeddings.weight"][ids]
    y = y + state[f"{bert}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    y = norm(y, f"{bert}.embeddings.LayerNorm", 1e-12)
    for i in range(2):
        layer = f"{bert}.encoder.layer.{i}"
        for name, source, mask in (("attention", None, ids != 0), ("crossattention", seen, None)):
            part = f"{layer}.{name}"
            other = y if source is None else source
            q = linear(y, f"{part}.self.query")
            k, v = (linear(other, f"{part}.self.{n}") for n in ("key", "value"))
            z = linear(attend(q, k, v, mask), f"{part}.output.dense")
            y = norm(y + z, f"{part}.output.LayerNorm", 1e-12)
        z = linear(F.gelu(linear(y, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        y = norm(y + z, f"{layer}.output.LayerNorm", 1e-12)
    return (linear_layers(y[:, 0], state, "mlp.") - 0.16717362830052426) / 1.0333394966054072


@torch.no_grad()
def test_imagereward_is_blips_model(weights: Path) -> None:
    pictures = smooth(4, 100, 100)
    expected = blip(torch.load(weights / "ImageReward.pt"), normalised(pictures), IDS)
    assert expected.std() > 1e-3
    close(make("imagereward")(pictures, PROMPTS), expected)


# Precision


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_keeps_the_ranking(name: str, weights: Path) -> None:
    """Pictures and weights in bfloat16; the networks here are narrower, so noisier, than real."""
    pictures = smooth(12, 64, 64) * torch.linspace(0.1, 1, 12).view(12, 1, 1, 1)
    prompts = ["dog two a"] * 12
    full = make(name)(pictures, prompts)
    half = make(name, dtype=torch.bfloat16)(pictures.bfloat16(), prompts)
    assert half.dtype == torch.float32
    assert spearmanr(full, half).statistic > 0.95


# Loading


def test_weights_are_read_at_the_first_call_and_once(weights: Path, monkeypatch) -> None:
    forget()
    reads = []
    monkeypatch.setattr(hps, "read_pickle", lambda path: reads.append(path) or load(path))
    load = torch.load
    first, second = make("hpsv2"), make("hpsv2-alignprop")
    assert not reads
    for reward in (first, first, second):
        reward(smooth(1, 64, 64), ["cat"])
    assert len(reads) == 1
    forget()


@pytest.mark.parametrize("name", NAMES)
def test_without_weights_it_says_what_how_big_and_where(name: str, tmp_path, monkeypatch) -> None:
    """And nothing is downloaded unless asked for."""
    import huggingface_hub

    asked = []

    def snapshot(repository: str, *, local_files_only: bool, **_: object) -> str:
        asked.append(local_files_only)
        raise huggingface_hub.errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.delenv("ALIGNPROP_BENCH_WEIGHTS", raising=False)
    monkeypatch.delenv("ALIGNPROP_BENCH_DOWNLOAD", raising=False)
    forget()
    message = r"needs .* of .*/.* \([\d,]+ MB\).*ALIGNPROP_BENCH_WEIGHTS.*DOWNLOAD=1"
    with pytest.raises(UserError, match=message):
        make(name)(smooth(1, 64, 64), ["a cat"])
    monkeypatch.setenv("ALIGNPROP_BENCH_DOWNLOAD", "1")
    with pytest.raises(UserError, match="tried to download"):
        make(name)(smooth(1, 64, 64), ["a cat"])
    assert asked == [True, False]


class Bomb:
    """A pickle that runs code when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


FILES = {
    "aesthetic": "sac+logos+ava1-l14-linearMSE.pth",
    "hpsv2": "HPS_v2_compressed.pt",
    "imagereward": "ImageReward.pt",
}


@pytest.fixture
def damaged(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_with_code_is_refused_and_not_run(name: str, damaged: Path, tmp_path) -> None:
    path = damaged / FILES[name]
    path.unlink()
    torch.save({"state_dict": Bomb(tmp_path / "it-ran")}, path)
    with pytest.raises(UserError, match=f"{re.escape(path.name)}.*nothing was run") as caught:
        make(name)(smooth(1, 64, 64), ["a cat"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "it-ran").exists()


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, "clipscore"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_named(name: str, share: float, damaged: Path) -> None:
    path = damaged / FILES.get(name, "clip-vit-base-patch32/model.safetensors")
    content = path.read_bytes()
    replace(path, content[: int(share * len(content))])
    with pytest.raises(UserError, match=f"{re.escape(path.name)}: damaged or truncated") as caught:
        make(name)(smooth(1, 64, 64), ["a cat"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*FILES, "pickscore"])
@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_a_wrong_weight_is_named(name: str, change: str, damaged: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = damaged / FILES.get(name, "PickScore_v1/model.safetensors")
    whole = load_file(path) if name == "pickscore" else torch.load(path)
    state = whole.get("state_dict", whole)
    key = next(k for k in state if k.endswith((".bias", "ln_1.bias")))
    value = state.pop(key)
    if change == "unknown":
        state |= {key: value, "something.else": torch.zeros(1)}
    if change == "shape":
        state[key] = torch.zeros(5)
    path.unlink()
    save_file(whole, path) if name == "pickscore" else torch.save(whole, path)
    message = {"missing": "lacks weight", "unknown": "unknown weight", "shape": "has shape"}[change]
    with pytest.raises(UserError, match=f"{re.escape(path.name)}: .*{message}"):
        make(name)(smooth(1, 64, 64), ["a cat"])


def test_hps_without_a_state_dict_is_named(damaged: Path) -> None:
    path = damaged / FILES["hpsv2"]
    path.unlink()
    torch.save(open_clip_state(), path)
    with pytest.raises(UserError, match="has no 'state_dict'"):
        make("hpsv2")(smooth(1, 64, 64), ["a cat"])


def test_published_architectures_have_the_published_sizes() -> None:
    """HPSv2: open_clip's 986.11 M. ImageReward: its file of 1.79 GB has four bytes for each."""
    clip = CLIPConfig(text_config=REAL_HPS[1], vision_config=REAL_HPS[0], projection_dim=1024)
    with torch.device("meta"):
        hps_model = CLIPModel(clip)
        vision = BlipVisionModel(BlipVisionConfig(**REAL_BLIP[0]))
        config = BlipTextConfig(**REAL_BLIP[1], is_decoder=True)
        text = BlipTextModel(config, add_pooling_layer=False)
        head = linear_head()
        parts = (vision, text, head, torch.nn.Linear(1024, 256), torch.nn.Linear(768, 256))
    assert sum(p.numel() for p in hps_model.parameters()) == 986_109_441
    assert sum(p.numel() for m in parts for p in m.parameters()) * 4 / 1e9 == pytest.approx(
        1.79, abs=0.005
    )
