"""Train the embedded model from nothing: ``python -m benchmarks.emoji.pretrain``.

Stages, in order; each writes into ``--work``, is skipped when finished and resumes when not:

scenes      render the training pictures (the art is fetched with ``npm pack``)
clip        tokenizer and a small CLIP; its text tower, frozen from then on, conditions the U-Net
image-tower the CLIP's image tower, longer
latents     the encoder of the VAE, from principal components, applied to every picture
vae         AutoencoderKL, f=8 with 32 channels: the decoder
counter     the embedded counting reward
judge       the classifier that evaluates
unet        v-prediction on cached latents, zero terminal SNR, conditioning dropped 10 %
assemble    half-precision weights into ``weights/``

``torchrun --nproc-per-node 2 -m benchmarks.emoji.pretrain --threads 1`` splits each batch
over two processes, which uses two cores better than one process with two threads.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from rich.progress import Progress, TimeRemainingColumn
from torch import Tensor, nn
from torch import distributed as dist
from transformers import CLIPModel, CLIPTokenizer

from benchmarks.emoji import build, data, vision

ALONE = ("scenes", "latents", "assemble")  # the stages that one process does for all
STEPS = {"clip": 950, "image-tower": 700, "vae": 2400, "counter": 600, "judge": 600, "unet": 13000}
POOL = 40_000


class Pool:
    """The rendered training pictures and what they show."""

    def __init__(self, work: Path) -> None:
        self.images = np.load(work / "scenes.npy", mmap_mode="r")
        labels = np.load(work / "labels.npz")
        self.animal, self.count = labels["animal"], labels["count"]
        self.background, self.density = labels["background"], labels["density"]

    def pictures(self, index: np.ndarray) -> Tensor:
        """(B, 3, 64, 64) in [0, 1]."""
        return torch.from_numpy(self.images[index]).permute(0, 3, 1, 2).float() / 255

    def captions(self, index: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        """Random true captions, and per caption the named background or -1."""
        named = np.where(rng.random(len(index)) < 0.5, self.background[index], -1)
        names = list(data.BACKGROUNDS)
        texts = [
            data.caption(
                data.ANIMALS[self.animal[i]],
                int(self.count[i]),
                names[b] if b >= 0 else None,
                bare=rng.random() < 0.4,
            )
            for i, b in zip(index, named, strict=True)
        ]
        return texts, named


def fit(
    stage: str,
    work: Path,
    module: nn.Module,
    loss_of: Callable[[int, np.random.Generator], Tensor],
    lr: float,
    ema_decay: float = 0.999,
    weight_decay: float = 0.01,
) -> Any:
    """AdamW, clipping at 1; returns the module's exponential moving average.

    The learning rate warms up, stays, and falls to zero over the last 30 % of the steps. Saves
    every 250 steps and resumes from there. Step n draws from a generator seeded with n and the
    rank; gradients are averaged over processes.
    """
    steps, path = STEPS[stage], work / f"{stage}.ckpt.pt"
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(ema_decay)
    )
    start = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]

    def save(step: int) -> None:
        states: dict[str, Any] = {"module": module, "average": average, "optimizer": optimizer}
        torch.save(
            {name: part.state_dict() for name, part in states.items()} | {"step": step},
            path.with_suffix(".tmp"),
        )
        path.with_suffix(".tmp").replace(path)

    smooth = math.nan
    with Progress(*Progress.get_default_columns(), TimeRemainingColumn()) as progress:
        bar = progress.add_task(stage, total=steps, completed=start)
        for step in range(start, steps):
            torch.manual_seed(step * world() + rank())
            rate = min(1.0, (step + 1) / 100, (steps - step) / (0.3 * steps))
            optimizer.param_groups[0]["lr"] = lr * rate
            loss = loss_of(step, np.random.default_rng([step, rank()]))
            optimizer.zero_grad()
            loss.backward()
            average_gradients(trained)
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            # A short average at first, so that the initialisation is forgotten.
            decay = min(ema_decay, (step + 1) / (step + 10))
            average.multi_avg_fn = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
            average.update_parameters(module)
            value = loss.item()
            smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
            progress.update(bar, completed=step + 1, description=f"{stage} loss {smooth:.4f}")
            if rank() == 0 and ((step + 1) % 250 == 0 or step + 1 == steps):
                save(step + 1)
                progress.console.print(f"{stage} step {step + 1} of {steps}: loss {smooth:.4f}")
    return average.module.eval()


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def average_gradients(parameters: list[nn.Parameter]) -> None:
    if world() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients]) / world()
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def train_scenes(work: Path) -> None:
    stream = data.scenes(data.load_sprites(work), seed=1)
    images = np.empty((POOL, data.SIZE, data.SIZE, 3), np.uint8)
    density = np.zeros((POOL, 16, 16), np.float16)
    labels: dict[str, Any] = {"animal": [], "count": [], "background": []}
    for i in range(POOL):
        scene = next(stream)
        images[i] = scene.image
        density[i] = density_map(scene.centers)
        for name, values in labels.items():
            values.append(getattr(scene, name))
    arrays: dict[str, Any] = {k: np.array(v) for k, v in labels.items()}
    np.savez(work / "labels.npz", density=density, **arrays)
    np.save(work / "scenes.npy", images)


def density_map(centers: np.ndarray) -> np.ndarray:
    """A 16x16 map that sums to the number of centres: one normalised Gaussian (sigma 1) each."""
    grid = np.arange(16) + 0.5
    x, y = (np.exp(-((grid[None] - centers[:, i : i + 1] / 4) ** 2) / 2) for i in (0, 1))
    maps = y[:, :, None] * x[:, None, :]
    return (maps / maps.sum((1, 2), keepdims=True)).sum(0)


def train_clip(work: Path) -> None:
    tokenizer = build.train_tokenizer()
    clip = build.clip(tokenizer)
    loss_of = contrast(work, clip, tokenizer, batch=128)
    fit("clip", work, clip, loss_of, lr=1e-3, weight_decay=0.05).save_pretrained(work / "clip")
    tokenizer.save_pretrained(work / "tokenizer")


def train_image_tower(work: Path) -> None:
    """With the text tower locked (LiT, Zhai et al. 2022), beside or after the U-Net."""
    clip = CLIPModel.from_pretrained(work / "clip")
    clip.text_model.requires_grad_(False)
    clip.text_projection.requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    loss_of = contrast(work, clip, tokenizer, batch=96)
    tuned = fit("image-tower", work, clip, loss_of, lr=5e-4, weight_decay=0.05)
    tuned.save_pretrained(work / "clip-tuned")


def contrast(
    work: Path, clip: CLIPModel, tokenizer: CLIPTokenizer, batch: int
) -> Callable[[int, np.random.Generator], Tensor]:
    """CLIP's loss, with every caption that is true of a picture as a positive."""
    pool = Pool(work)

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        index = rng.integers(POOL, size=batch // world())
        texts, named = pool.captions(index, rng)
        tokens = tokenizer(texts, padding="max_length", return_tensors="pt")
        out = clip(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            pixel_values=2 * pool.pictures(index) - 1,
        )
        animal, count, background = (x[index] for x in (pool.animal, pool.count, pool.background))
        # Caption i is true of picture j, whether or not it was written for it.
        true = (animal[:, None] == animal) & (count[:, None] == count)
        true &= (named[:, None] == background) | (named[:, None] < 0)
        target = torch.from_numpy(true).float()
        logits = out.logits_per_text
        by_text = -(logits.log_softmax(1) * target / target.sum(1, keepdim=True)).sum(1)
        by_image = -(logits.log_softmax(0) * target / target.sum(0, keepdim=True)).sum(0)
        return (by_text.mean() + by_image.mean()) / 2

    return loss_of


def encoder(work: Path) -> AutoencoderKL:
    """The VAE with its encoder set and its decoder at the start of training."""
    torch.manual_seed(0)
    vae = build.vae()
    build.encode_by_pca(vae, 2 * Pool(work).pictures(np.arange(min(2000, POOL))) - 1)
    for name, module in vae.decoder.named_modules():
        if name.endswith("conv2"):  # residual branches start silent
            nn.init.zeros_(module.weight)
    return vae


def train_vae(work: Path) -> None:
    pool, vae = Pool(work), encoder(work)
    mean, _ = latents(work)
    vae.encoder.requires_grad_(False)

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        index = rng.integers(POOL, size=6 // world())
        pictures = 2 * pool.pictures(index) - 1
        codes = mean[index].float()
        decoded = vae.decode(codes + build.NOISE * torch.randn_like(codes)).sample
        edges = sum((decoded.diff(dim=d) - pictures.diff(dim=d)).abs().mean() for d in (2, 3))
        return F.mse_loss(decoded, pictures) + 0.2 * ((decoded - pictures).abs().mean() + edges)

    fit("vae", work, vae, loss_of, lr=1.5e-3, ema_decay=0.998).save_pretrained(work / "vae")


def degrade(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise, and for half of the batch blur: what a network should see through."""
    half = len(pictures) // 2
    small = F.interpolate(pictures[:half], scale_factor=float(rng.uniform(0.45, 1)), mode="area")
    blurred = F.interpolate(small, size=pictures.shape[-2:], mode="bilinear")
    pictures = torch.cat([blurred, pictures[half:]])
    return (pictures + rng.uniform(0, 0.08) * torch.randn_like(pictures)).clamp(0, 1)


def train_counter(work: Path) -> None:
    pool, counter = Pool(work), vision.Counter()

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        index = rng.integers(POOL, size=32 // world())
        pictures, target = pool.pictures(index), torch.from_numpy(pool.density[index]).float()
        for i in range(len(index) // 8):  # some empty ones: nothing must count as nothing
            color = list(data.BACKGROUNDS.values())[pool.background[index[i]]]
            pictures[i] = (torch.tensor(color) / 255)[:, None, None]
            target[i] = 0
        density, logits = counter(degrade(pictures, rng))
        animal = torch.from_numpy(pool.animal[index])[:, None, None].expand_as(target)
        which = (F.cross_entropy(logits, animal, reduction="none") * target).sum() / target.sum()
        total = (density.sum((1, 2)) - target.sum((1, 2))).abs().mean()
        return 100 * F.mse_loss(density, target) + 0.2 * total + 0.5 * which

    vision.save(fit("counter", work, counter, loss_of, lr=2e-3), work / "counter.safetensors")


def train_judge(work: Path) -> None:
    pool, judge = Pool(work), vision.Judge()

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        index = rng.integers(POOL, size=32 // world())
        animal, count = judge(degrade(pool.pictures(index), rng))
        return F.cross_entropy(animal, torch.from_numpy(pool.animal[index])) + F.cross_entropy(
            count, torch.from_numpy(pool.count[index]) - 1
        )

    vision.save(fit("judge", work, judge, loss_of, lr=2e-3), work / "judge.safetensors")


@torch.no_grad()
def encode_scenes(work: Path) -> None:
    pool, vae = Pool(work), encoder(work)
    posteriors = [
        vae.encode(2 * pool.pictures(np.arange(i, i + 100)) - 1).latent_dist
        for i in range(0, POOL, 100)
    ]
    mean, std = (torch.cat([getattr(p, k) for p in posteriors]).half() for k in ("mean", "std"))
    torch.save((mean, std), work / "latents.pt")


def latents(work: Path) -> tuple[Tensor, Tensor]:
    """Posterior means and standard deviations of every picture: (POOL, 32, 8, 8) each."""
    mean, std = torch.load(work / "latents.pt", weights_only=True)
    return mean, std


def train_unet(work: Path) -> None:
    pool, unet = Pool(work), build.unet()
    mean, std = latents(work)
    scale = build.latent_scale(mean.float(), std.float())
    text = CLIPModel.from_pretrained(work / "clip").text_model.eval()
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    captions = {c: i for i, c in enumerate(["", *dict.fromkeys(data.all_captions())])}
    with torch.no_grad():
        tokens = tokenizer(list(captions), padding="max_length", return_tensors="pt").input_ids
        states = torch.cat([text(input_ids=part).last_hidden_state for part in tokens.split(256)])
    schedule = build.scheduler()
    unet.to(memory_format=torch.channels_last)

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        size = 32 // world()
        index = rng.integers(POOL, size=size)
        texts, _ = pool.captions(index, rng)
        rows = [captions[t] if rng.random() > 0.1 else 0 for t in texts]
        clean = scale * (mean[index] + std[index] * torch.randn_like(mean[index])).float()
        noise = torch.randn_like(clean)
        # One timestep in each of ``size`` equal ranges: a less noisy gradient than free draws. The
        # layout, and with it the count, is decided in the noise: its half is drawn three times as
        # often as the other.
        spread = (np.arange(size) + rng.random(size)) / size
        spread = np.where(spread < 0.5, 2 * spread, spread)
        timesteps = torch.from_numpy((1000 * spread).astype(int))
        noisy = schedule.add_noise(clean, noise, timesteps)
        predicted = unet(noisy, timesteps, encoder_hidden_states=states[rows]).sample
        return F.mse_loss(predicted, schedule.get_velocity(clean, noise, timesteps))

    fit("unet", work, unet, loss_of, lr=1e-3).save_pretrained(work / "unet")


def assemble(work: Path) -> None:
    mean, std = latents(work)
    build.assemble(work, build.latent_scale(mean.float(), std.float()))


RUN: dict[str, Callable[[Path], None]] = {
    "scenes": train_scenes,
    "clip": train_clip,
    "image-tower": train_image_tower,
    "latents": encode_scenes,
    "vae": train_vae,
    "counter": train_counter,
    "judge": train_judge,
    "unet": train_unet,
    "assemble": assemble,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, default=data.CACHE, help="caches and checkpoints")
    parser.add_argument("--stages", nargs="+", choices=RUN, default=list(RUN))
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    args.work.mkdir(parents=True, exist_ok=True)
    for stage in args.stages:
        done = args.work / f"{stage}.done"
        if not done.exists():
            torch.manual_seed(0)
            if rank() == 0 or stage not in ALONE:
                RUN[stage](args.work)
            if world() > 1:
                dist.barrier()
            done.touch()


if __name__ == "__main__":
    main()
