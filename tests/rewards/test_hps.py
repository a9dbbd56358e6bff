"""HPSv2 on tiny weights in the published format, against open_clip's model."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from synthetic import (  # noqa: F401
    IDS,
    LENGTH,
    PROMPTS,
    TOWER,
    WORDS,
    close,
    fixture_damaged,
    fixture_weights,
    forget,
    make,
    normalised,
    open_clip_state,
    smooth,
)
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from benchmarks.api import UserError
from rewards import hps
from rewards._clip import OFFICIAL

VISION, TEXT = hps.VISION, hps.TEXT  # the real sizes; tests have smaller ones


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
    top, *inner = package.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        pytest.skip(f"{top} is not installed")
    entered = ModuleType(f"without_init_{top}")
    entered.__path__ = [str(Path(spec.origin).parent.joinpath(*inner))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, entered.__name__, entered)
        # They take a layer from torchvision that this model does not have.
        for name in ("torchvision.ops", "torchvision.ops.misc"):
            stand_in = ModuleType(name)
            stand_in.FrozenBatchNorm2d = torch.nn.Identity
            patch.setitem(sys.modules, name, stand_in)
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


def test_hps_without_a_state_dict_is_named(damaged: Path) -> None:
    path = damaged / hps.HPSv2.weights.files[0]
    path.unlink()
    torch.save(open_clip_state(), path)
    with pytest.raises(UserError, match="has no 'state_dict'"):
        make("hpsv2")(smooth(1, 64, 64), ["a cat"])


def test_the_published_architecture_has_the_published_size() -> None:
    """open_clip's 986.11 M."""
    clip = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=1024)
    with torch.device("meta"):
        model = CLIPModel(clip)
    assert sum(p.numel() for p in model.parameters()) == 986_109_441
