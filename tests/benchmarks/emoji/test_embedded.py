"""The embedded model: complete, small, and able to learn."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import run_benchmark
from analysis.records import read_evals, read_json
from benchmarks.emoji import data, vision
from benchmarks.emoji.build import WEIGHTS
from rewards.alignment import Alignment


def test_it_is_a_pipeline_of_at_most_forty_megabytes():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    (image,) = pipeline("a cat", num_inference_steps=2, generator=generator).images
    assert image.size == (64, 64)


def test_captions():
    assert data.caption("cat", 1, None, bare=True) == "cat"
    assert data.caption("octopus", 1, None) == "an octopus"
    assert data.caption("fox", 2, None) == "two foxes"
    assert data.caption("frog", 3, "blue") == "three frogs on a blue background"
    plurals = {"mouse": "mice", "butterfly": "butterflies", "fly": "flies", "sheep": "sheep"}
    assert {name: data.plural(name) for name in plurals} == plurals


def test_every_caption_fits_the_tokenizer():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    captions = data.all_captions()
    ids = tokenizer(captions).input_ids
    assert max(map(len, ids)) <= tokenizer.model_max_length
    assert tokenizer.decode(ids[-1], skip_special_tokens=True) == captions[-1]


def test_animals_have_distinct_embeddings():
    """A text tower that collapsed would give every animal the same picture."""
    from transformers import CLIPTokenizer

    from rewards.alignment import EMBEDDED, _load

    model, tokenizer, _, _ = _load(EMBEDDED.resolve(), torch.device("cpu"), torch.float32)
    assert isinstance(tokenizer, CLIPTokenizer)
    tokens = tokenizer([f"a {name}" for name in data.ANIMALS], padding=True, return_tensors="pt")
    with torch.no_grad():
        features = model.get_text_features(**tokens)
    features = torch.nn.functional.normalize(getattr(features, "pooler_output", features), dim=1)
    others = features @ features.T - 2 * torch.eye(len(data.ANIMALS))
    assert others.max() < 0.99


def test_reward_models_have_gradients():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    Alignment("cpu")(images, ["a cat", "two dogs"]).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    counter = vision.load(vision.Counter(), WEIGHTS / "counter.safetensors")
    count = counter.count(images, torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(count.sum(), images)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.slow
def test_both_methods_raise_the_reward_on_unseen_animals(tmp_path: Path):
    assert run_benchmark.main(["--out", str(tmp_path)]) == 0
    for method in ("alignprop", "ddpo"):
        (cell,) = tmp_path.glob(f"{method}-*")
        evals = read_evals(cell, read_json(cell / "cell.json"), [])
        unseen = evals[evals["split"] == "unseen"].sort_values("fraction")
        assert unseen["jpeg"].iloc[-1] > unseen["jpeg"].iloc[0]
