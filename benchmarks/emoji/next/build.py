"""The architectures of the embedded model, and its assembly into a diffusers folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from benchmarks.emoji.next.data import SIZE, all_captions

TOKENS = 16  # length of a tokenised caption
WIDTH = 192  # of the text tower
#: Latent channels. On held-out scenes of all styles a linear code of 24, 32, 40 or 48 numbers per
#: patch keeps 27.1, 28.3, 29.5 or 30.5 dB.
LATENTS = 40
NOISE = 0.05  # standard deviation of the posterior
GUIDANCE = 3.0  # built into the student


def learn_merges() -> list[tuple[str, str]]:
    """The byte-pair merges of the captions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator(
        all_captions(),
        trainers.BpeTrainer(vocab_size=2000, min_frequency=2, end_of_word_suffix="</w>"),
    )
    learned = json.loads(learner.to_str())["model"]["merges"]
    return [tuple(m.split() if isinstance(m, str) else m) for m in learned]


def tokenizer(merges: list[tuple[str, str]]) -> CLIPTokenizer:
    """A genuine CLIP tokenizer; its vocabulary follows from its merges."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # CLIP's order: bytes, bytes that end a word, merges, start, end.
    symbols = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The embedded CLIP: 64-pixel images in 8-pixel patches, captions of TOKENS tokens."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKENS,
        "projection_dim": 128,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
        "projection_dim": 128,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def vae() -> AutoencoderKL:
    """f=8 with 40 latent channels: (B, 3, 64, 64) to (B, 40, 8, 8)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 48, 96, 128),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


@torch.no_grad()
def encode_by_pca(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Set the encoder to the principal components of 8x8 patches, exactly as far as it can be.

    An encoder of this size trained from scratch for an hour keeps far less. Residual branches are
    silenced, the strided convolutions rearrange space into channels, and the last normalisation is
    made linear by two large constants per group. Components are divided by the fourth root of their
    deviation: large ones lead, small ones stay above the posterior's noise. ``pictures``: (B, 3, H,
    W) in [-1, 1].
    """
    encoder, taps = vae.encoder, [(0, 0), (0, 1), (1, 0), (1, 1)]
    for name, module in encoder.named_modules():
        if name.endswith(("conv2", "conv_shortcut", "downsamplers.0.conv", "conv_in", "conv_out")):
            module.weight.zero_()
            module.bias.zero_()
    blocks = encoder.down_blocks
    encoder.conv_in.weight[range(3), range(3), 1, 1] = 1

    patches = pictures
    for level, width in enumerate((3, 12)):
        conv = blocks[level].downsamplers[0].conv
        for tap, (y, x) in enumerate(taps):
            conv.weight[range(tap * width, (tap + 1) * width), range(width), y, x] = 1
        shortcut = blocks[level + 1].resnets[0].conv_shortcut
        shortcut.weight[range(4 * width), range(4 * width), 0, 0] = 1
    for _ in range(3):
        patches = torch.cat([patches[:, :, y::2, x::2] for y, x in taps], 1)
    rows = patches.permute(0, 2, 3, 1).reshape(-1, patches.shape[1])
    center = rows.mean(0)
    deviations, basis = torch.linalg.eigh((rows - center).T @ (rows - center) / len(rows))
    deviations, basis = deviations.flip(0)[:LATENTS].sqrt(), basis.flip(1)[:, :LATENTS].T
    basis = basis / deviations[:, None] ** 0.25 / deviations.pow(1.5).mean().sqrt()
    conv = blocks[2].downsamplers[0].conv
    for tap, (y, x) in enumerate(taps):
        conv.weight[:LATENTS, :48, y, x] = basis[:, 48 * tap : 48 * (tap + 1)]
    conv.bias[:LATENTS] = -basis @ center

    groups, size, constant, shift = 8, 16, 200.0, 32.0
    first = torch.arange(groups) * size
    places = torch.cat([first + 2 + i for i in range(LATENTS // groups)])
    shortcut = blocks[3].resnets[0].conv_shortcut
    shortcut.weight[places, range(LATENTS), 0, 0] = 1
    # The negatives keep every group's mean, which the normalisation takes away, at zero.
    shortcut.weight[places + LATENTS // groups, range(LATENTS), 0, 0] = -1
    shortcut.bias[first], shortcut.bias[first + 1] = constant, -constant
    encoder.conv_norm_out.weight.fill_(constant * (2 / size) ** 0.5)
    encoder.conv_norm_out.bias.fill_(shift)  # SiLU is linear up there
    encoder.conv_out.weight[range(LATENTS), places, 1, 1] = 1
    encoder.conv_out.bias[:LATENTS] = -shift
    encoder.conv_out.bias[LATENTS:] = 2 * math.log(NOISE)
    vae.quant_conv.weight.copy_(torch.eye(2 * LATENTS)[:, :, None, None])
    vae.quant_conv.bias.zero_()


@torch.no_grad()
def linear_encoder(vae: AutoencoderKL) -> nn.Conv2d:
    """The map that ``encode_by_pca`` put into the encoder, as one convolution.

    It is read off the encoder's answers to single pixels, and a hundred times faster.
    """
    taps = 3 * 8 * 8
    patches = torch.zeros(256, taps)  # four pictures of 64 patches; all but ``taps`` stay empty
    patches[:taps] = torch.eye(taps)
    grid = patches.reshape(4, 8, 8, 3, 8, 8).permute(0, 3, 1, 4, 2, 5)
    answers = vae.encode(grid.reshape(4, 3, SIZE, SIZE)).latent_dist.mean
    answers = answers.permute(0, 2, 3, 1).reshape(256, LATENTS)
    conv = nn.Conv2d(3, LATENTS, 8, stride=8)
    assert conv.bias is not None
    conv.bias.copy_(answers[-1])
    conv.weight.copy_((answers[:taps] - answers[-1]).T.reshape(LATENTS, 3, 8, 8))
    return conv


def unet() -> UNet2DConditionModel:
    """Convolutions at 8x8, convolutions and attention at 4x4.

    The caption also joins the time embedding, which scales and shifts every normalisation (ADM,
    Dhariwal and Nichol 2021): it learns the animals in a fraction of the steps that
    cross-attention alone needs.
    """
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENTS,
        out_channels=LATENTS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(96, 192),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=4,  # diffusers' name for the number of heads
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """v-prediction from pure noise (zero terminal SNR, trailing timesteps)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # without effect; StableDiffusionPipeline asks for it
        clip_sample=False,
        set_alpha_to_one=False,
    )


def assemble(
    folder: Path,
    tokenizer: CLIPTokenizer,
    clip: CLIPModel,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    scale: float,
) -> None:
    """Write the pipeline and the CLIP model to ``folder`` in half precision.

    ``scale`` is the factor that gives sampled latents unit variance.
    """
    text_encoder = CLIPTextModel(clip.config.text_config)
    text_encoder.load_state_dict(clip.text_model.state_dict())
    vae.register_to_config(scaling_factor=scale)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    clip.half().save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
