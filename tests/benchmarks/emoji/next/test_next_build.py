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
    """Patches from a space of LATENTS directions are kept whole: a linear map gives them back."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(192, build.LATENTS)).Q
    codes = torch.randn(60, 64, build.LATENTS) @ basis.T
    pictures = _pictures(codes)
    vae = build.vae()
    build.encode_by_pca(vae, pictures)
    with torch.no_grad():
        posterior = vae.encode(pictures).latent_dist
    assert torch.allclose(posterior.std, torch.tensor(build.NOISE), atol=1e-4)
    rows = posterior.mean.permute(0, 2, 3, 1).reshape(-1, build.LATENTS)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    wanted = codes.reshape(-1, 192)
    given_back = rows @ torch.linalg.lstsq(rows, wanted).solution
    assert (given_back - wanted).square().mean() < 1e-3 * wanted.var()
    assert 0.5 < float(posterior.mean.std()) < 2  # noise of 0.05 does not drown it


def test_the_encoder_is_one_convolution():
    torch.manual_seed(1)
    pictures = _pictures(torch.randn(20, 64, 192) * torch.logspace(0, -2, 192))
    vae = build.vae()
    build.encode_by_pca(vae, pictures)
    with torch.no_grad():
        means = vae.encode(pictures).latent_dist.mean
        shortcut = build.linear_encoder(vae)(pictures)
    assert (means - shortcut).abs().max() < 0.02 * means.std()


def _pictures(patches):
    """(B, 64, 192) to (B, 3, 64, 64)."""
    grid = patches.reshape(-1, 8, 8, 3, 8, 8).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(-1, 3, 64, 64)


def test_the_unet_takes_captions_of_any_batch():
    unet = build.unet().eval()
    latents = torch.randn(2, build.LATENTS, 8, 8)
    states = torch.randn(2, build.TOKENS, build.WIDTH)
    with torch.no_grad():
        out = unet(latents, torch.tensor([1, 999]), encoder_hidden_states=states).sample
    assert out.shape == latents.shape
