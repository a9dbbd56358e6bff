"""The architectures of the embedded model."""

import torch

from benchmarks.emoji.next import build, vision


def _size(module):
    return sum(p.numel() for p in module.parameters())


def test_sizes():
    merges = build.learn_merges()
    sizes = {
        "unet": _size(build.unet()),
        "vae": _size(build.vae()),
        "clip": _size(build.clip(build.tokenizer(merges))),
        "judge": _size(vision.Judge()),
        "counter": _size(vision.Counter()),
    }
    assert sizes["unet"] <= 10_000_000
    text_tower = 1_600_000  # shipped twice: in the pipeline and in the CLIP model
    assert 2 * (sum(sizes.values()) + text_tower) <= 40_000_000  # bytes in half precision


def test_the_tokenizer_knows_every_word():
    tokenizer = build.tokenizer(build.learn_merges())
    tokens = tokenizer(["three painted hippopotamuses on a purple background"]).input_ids[0]
    assert len(tokens) == 9  # start, seven words, end


def test_the_encoder_computes_principal_components():
    """A linear code: what is decoded by the transpose of its map is the best of its rank."""
    torch.manual_seed(0)
    # Pictures of patches from a space of LATENTS - 8 directions, which the code keeps whole.
    basis = torch.linalg.qr(torch.randn(192, build.LATENTS - 8)).Q
    codes = torch.randn(60, 64, build.LATENTS - 8) @ basis.T
    patches = codes.reshape(60, 8, 8, 3, 8, 8).permute(0, 3, 1, 4, 2, 5)
    pictures = (patches.reshape(60, 3, 64, 64) / 3).clamp(-3, 3)
    vae = build.vae()
    build.encode_by_pca(vae, pictures)
    with torch.no_grad():
        posterior = vae.encode(pictures).latent_dist
    assert torch.allclose(posterior.std, torch.tensor(build.NOISE), atol=1e-4)
    rows = posterior.mean.permute(0, 2, 3, 1).reshape(-1, build.LATENTS)
    wanted = pictures.reshape(60, 3, 8, 8, 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 192)
    bias = torch.ones(len(rows), 1)
    found = torch.linalg.lstsq(torch.cat([rows, bias], 1), wanted).solution
    error = (torch.cat([rows, bias], 1) @ found - wanted).square().mean() / wanted.var()
    assert error < 1e-3
    assert abs(float(rows.var()) - 1) < 1  # of a size that noise of 0.05 does not drown


def test_the_unet_takes_captions_of_any_batch():
    unet = build.unet().eval()
    latents = torch.randn(2, build.LATENTS, 8, 8)
    states = torch.randn(2, build.TOKENS, build.WIDTH)
    with torch.no_grad():
        out = unet(latents, torch.tensor([1, 999]), encoder_hidden_states=states).sample
    assert out.shape == latents.shape
