"""FLUX's packed latents, and guidance as an input."""

import pytest
import torch
from tiny_families import PROMPTS, drawn, tiny_flux

from benchmarks.api import UserError
from benchmarks.backbone.flux import Flux
from benchmarks.compute.ledger import Ledger, passes
from benchmarks.streams import Streams


def test_guidance_is_an_input_and_takes_one_pass():
    model = Flux(tiny_flux(), Ledger())
    latents = Streams(0).normal("noise", 0, range(2), model.latent_shape)
    with torch.no_grad():
        weak, strong = (
            model.predict(latents, 500.0, model.encode(PROMPTS), guidance)
            for guidance in (1.0, 3.5)
        )
    assert passes(model.ledger.counts, "denoiser", "forward") == 4
    assert weak.shape == latents.shape and not torch.allclose(weak, strong)
    assert "" not in model._conditions


def test_without_an_embedding_guidance_changes_nothing_as_in_the_pipeline(compared):
    ours, theirs = tiny_flux(), tiny_flux()
    for pipeline in (ours, theirs):
        transformer = type(pipeline.transformer).from_config(
            dict(pipeline.transformer.config) | {"guidance_embeds": False}
        )
        weights = pipeline.transformer.state_dict()
        transformer.load_state_dict({k: weights[k] for k in transformer.state_dict()})
        pipeline.transformer = transformer
    model = Flux(ours, Ledger())
    noise = Streams(0).normal("noise", 0, range(2), model.latent_shape)
    for guidance in (1.0, 3.5):
        final = model.sample(model.sampler(2), PROMPTS, noise, guidance=guidance).final
        compared("pictures", model.decode(final), drawn(theirs, noise, 2, guidance), 1e-5)


def test_its_own_pictures_have_the_size_of_the_pipelines():
    assert Flux(tiny_flux(), Ledger()).latent_shape == (4, 8, 8)


def test_a_transformer_that_wants_more_than_latents_is_refused():
    pipeline = tiny_flux()
    pipeline.transformer.register_to_config(in_channels=32)
    with pytest.raises(UserError, match="in_channels is 32; supported: 16"):
        Flux(pipeline, Ledger())
