"""Train the embedded model from nothing: ``python -m benchmarks.emoji.next.pretrain``.

Stages, in order; each writes into ``--work``, is skipped when finished and resumes when not:

scenes      render the training pictures (the art is fetched with ``npm pack``)
latents     the encoder of the VAE, from principal components, applied to every picture
vae         AutoencoderKL, f=8 with 40 channels: the decoder
clip        tokenizer and a small CLIP; its text tower, frozen from then on, conditions the U-Net
image-tower the CLIP's image tower, longer
judge       the classifier that evaluates
counter     the embedded counting reward
unet        v-prediction on cached latents, zero terminal SNR, conditioning dropped 10 %
distil      a student whose plain prediction is the U-Net's guided one
assemble    half-precision weights of everything into ``weights/``

What an earlier training finished, or where it stands, lies in ``trained/`` and is taken from there
when ``--work`` has nothing of it; ``--export`` puts it there.

``torchrun --nproc-per-node 2 -m benchmarks.emoji.next.pretrain --threads 1`` splits each batch over
two processes, which uses two cores better than one process with two threads.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from rich.progress import Progress, TimeRemainingColumn
from safetensors import safe_open
from torch import Tensor, nn
from torch import distributed as dist
from transformers import CLIPModel, CLIPTokenizer

from benchmarks.emoji.next import build, data, vision

WEIGHTS = Path(__file__).parent / "weights"
TRAINED = Path(__file__).parent / "trained"
#: Optimizer steps. One core with AVX2 takes 0.65 s per step of the VAE.
STEPS = {
    "vae": 3600,
    "clip": 1200,
    "image-tower": 900,
    "judge": 5000,
    "counter": 600,
    "unet": 16_000,
    "distil": 1000,
}
POOL = 60_000


class Pool:
    """The rendered training pictures and what they show."""

    def __init__(self, work: Path) -> None:
        self.images = np.load(work / "scenes.npy", mmap_mode="r")
        labels = np.load(work / "labels.npz")
        self.animal, self.count, self.style = labels["animal"], labels["count"], labels["style"]
        self.pose, self.background = labels["pose"], labels["background"]
        self.density = labels["density"]

    def pictures(self, index: np.ndarray) -> Tensor:
        """(B, 3, 64, 64) in [0, 1]."""
        return torch.from_numpy(self.images[index]).permute(0, 3, 1, 2).float() / 255

    def captions(
        self, index: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Random true captions, and per caption the named background and style, or -1.

        Half of them name the background and half of them the style, one independent of the other.
        """
        background = np.where(rng.random(len(index)) < 0.5, self.background[index], -1)
        style = np.where(rng.random(len(index)) < 0.5, self.style[index], -1)
        columns = self.animal[index], self.count[index], background, style
        texts = [
            data.text_of(data.Meaning(*map(int, row)), bare=rng.random() < 0.4)
            for row in zip(*columns, strict=True)
        ]
        return texts, background, style


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
    every 250 steps and resumes from there, or from the average in ``trained/`` with a new
    optimizer. Step n draws from a generator seeded with n and the rank; gradients are averaged
    over processes.
    """
    steps, path = STEPS[stage], work / f"{stage}.ckpt.pt"
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(ema_decay)
    )
    start = warm = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start, warm = state["step"], state["warm"]
    elif (exported := TRAINED / f"{stage}.average.safetensors").exists():
        for part in (module, average.module):
            part.load_state_dict(vision.read(exported))
        average.n_averaged.fill_(1)  # or the first update would overwrite the average
        start = warm = steps_of(exported)

    def save(step: int) -> None:
        states: dict[str, Any] = {"module": module, "average": average, "optimizer": optimizer}
        torch.save(
            {name: part.state_dict() for name, part in states.items()}
            | {"step": step, "warm": warm},
            path.with_suffix(".tmp"),
        )
        path.with_suffix(".tmp").replace(path)

    smooth = math.nan
    with Progress(*Progress.get_default_columns(), TimeRemainingColumn()) as progress:
        bar = progress.add_task(stage, total=steps, completed=start)
        for step in range(start, steps):
            torch.manual_seed(step * world() + rank())
            rate = min(1.0, (step - warm + 1) / 100, (steps - step) / (0.3 * steps))
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
            if rank() == 0 and (step + 1) % 50 == 0:
                progress.console.print(f"{stage} step {step + 1} of {steps}: loss {smooth:.4f}")
            if rank() == 0 and ((step + 1) % 250 == 0 or step + 1 == steps):
                save(step + 1)
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
    stream = data.scenes(data.Art.load(work), seed=1)
    images = np.empty((POOL, data.SIZE, data.SIZE, 3), np.uint8)
    density = np.zeros((POOL, 16, 16), np.float16)
    names = ("animal", "style", "pose", "count", "background")
    labels = np.empty((len(names), POOL), np.int64)
    for i in range(POOL):
        scene = next(stream)
        images[i], density[i] = scene.image, density_map(scene.centers)
        labels[:, i] = [getattr(scene, name) for name in names]
    columns: dict[str, Any] = dict(zip(names, labels, strict=True))
    np.savez(work / "labels.npz", density=density, **columns)
    np.save(work / "scenes.npy", images)


def density_map(centers: np.ndarray) -> np.ndarray:
    """A 16x16 map that sums to the number of centres: one normalised Gaussian (sigma 1) each."""
    grid = np.arange(16) + 0.5
    x, y = (np.exp(-((grid[None] - centers[:, i : i + 1] / 4) ** 2) / 2) for i in (0, 1))
    maps = y[:, :, None] * x[:, None, :]
    return (maps / maps.sum((1, 2), keepdims=True)).sum(0)


@torch.no_grad()
def encode_scenes(work: Path) -> None:
    """Posterior means of every picture, (POOL, LATENTS, 8, 8) in float16.

    The encoder is kept rounded to half precision, as it will be shipped. Principal components are
    only defined up to their signs, so a decoder belongs to the very encoder it was trained with.
    """
    pool, vae = Pool(work), build.vae()
    path = work / "encoder.safetensors"
    if not take(path):
        build.encode_by_pca(vae, 2 * pool.pictures(np.arange(min(4000, POOL))) - 1)
        vision.save(nn.ModuleList([vae.encoder, vae.quant_conv]), path)
    load_encoder(vae, work)
    encode = build.linear_encoder(vae)
    means = [
        encode(2 * pool.pictures(np.arange(i, min(i + 100, POOL))) - 1).half()
        for i in range(0, POOL, 100)
    ]
    np.save(work / "latents.npy", torch.cat(means).numpy())


def load_encoder(vae: AutoencoderKL, work: Path) -> None:
    vision.load(nn.ModuleList([vae.encoder, vae.quant_conv]), work / "encoder.safetensors")


class Latents:
    """The encoded pool. ``scale`` gives sampled latents unit variance."""

    def __init__(self, work: Path) -> None:
        self.means = np.load(work / "latents.npy", mmap_mode="r")
        some = np.asarray(self.means[:4000], np.float32)
        self.scale = float((some.var() + build.NOISE**2) ** -0.5)

    def sample(self, index: np.ndarray) -> Tensor:
        """(B, LATENTS, 8, 8), not scaled."""
        means = torch.from_numpy(self.means[index]).float()
        return means + build.NOISE * torch.randn_like(means)


def train_vae(work: Path) -> None:
    torch.manual_seed(0)
    pool, latents, vae = Pool(work), Latents(work), build.vae()
    load_encoder(vae, work)
    for name, module in vae.decoder.named_modules():
        if name.endswith("conv2"):  # residual branches start silent
            nn.init.zeros_(module.weight)

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        index = rng.integers(POOL, size=8 // world())
        pictures = 2 * pool.pictures(index) - 1
        decoded = vae.decode(latents.sample(index)).sample
        edges = sum((decoded.diff(dim=d) - pictures.diff(dim=d)).abs().mean() for d in (2, 3))
        return F.mse_loss(decoded, pictures) + 0.2 * ((decoded - pictures).abs().mean() + edges)

    vision.save(fit("vae", work, vae, loss_of, lr=1.5e-3, ema_decay=0.998), output(work, "vae"))


class Labelled(nn.Module):
    """A CLIP with linear heads on its features, which keep apart what captions tell apart.

    The contrast alone learns animals and backgrounds first: after 600 steps its captions of two and
    of three animals were still a tenth as far apart as those of two animals.
    """

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        sizes = {"animal": len(data.ANIMALS), "count": len(data.NUMBERS)}
        sizes |= {"background": len(data.BACKGROUNDS), "style": len(data.STYLES)}
        width = clip.config.projection_dim
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in sizes.items()})

    def error(self, features: Tensor, truth: dict[str, np.ndarray]) -> Tensor:
        """Cross-entropy over all heads; a class of -1 is not asked for."""
        losses = [
            F.cross_entropy(head(10 * features), torch.from_numpy(truth[name]), ignore_index=-1)
            for name, head in self.heads.items()
        ]
        return torch.stack(losses).sum()


def train_clip(work: Path) -> None:
    tokenizer = load_tokenizer(work)
    model = Labelled(build.clip(tokenizer))
    loss_of = contrast(work, model, tokenizer, batch=128)
    tuned = fit("clip", work, model, loss_of, lr=1e-3, weight_decay=0.05)
    vision.save(tuned.clip, output(work, "clip"))


def train_image_tower(work: Path) -> None:
    """With the text tower locked (LiT, Zhai et al. 2022)."""
    tokenizer = load_tokenizer(work)
    model = Labelled(build.clip(tokenizer))
    model.clip.load_state_dict(vision.read(output(work, "clip")))
    model.clip.text_model.requires_grad_(False)
    model.clip.text_projection.requires_grad_(False)
    loss_of = contrast(work, model, tokenizer, batch=96)
    tuned = fit("image-tower", work, model, loss_of, lr=5e-4, weight_decay=0.05)
    vision.save(tuned.clip, output(work, "image-tower"))


def contrast(
    work: Path, model: Labelled, tokenizer: CLIPTokenizer, batch: int
) -> Callable[[int, np.random.Generator], Tensor]:
    """CLIP's loss, with every caption that is true of a picture as a positive, and the heads'."""
    pool = Pool(work)

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        index = rng.integers(POOL, size=batch // world())
        texts, named, styled = pool.captions(index, rng)
        tokens = tokenizer(texts, padding="max_length", return_tensors="pt")
        out = model.clip(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            pixel_values=2 * pool.pictures(index) - 1,
        )
        seen = {"animal": pool.animal[index], "count": pool.count[index] - 1}
        said = seen | {"background": named, "style": styled}
        seen |= {"background": pool.background[index], "style": pool.style[index]}
        # Caption i is true of picture j, whether or not it was written for it.
        true = np.ones((len(index), len(index)), bool)
        for name in said:
            true &= (said[name][:, None] == seen[name]) | (said[name][:, None] < 0)
        target = torch.from_numpy(true).float()
        logits = out.logits_per_text
        by_text = -(logits.log_softmax(1) * target / target.sum(1, keepdim=True)).sum(1)
        by_image = -(logits.log_softmax(0) * target / target.sum(0, keepdim=True)).sum(0)
        told = model.error(out.text_embeds, said) + model.error(out.image_embeds, seen)
        return (by_text.mean() + by_image.mean()) / 2 + 0.2 * told

    return loss_of


def load_tokenizer(work: Path) -> CLIPTokenizer:
    path = work / "merges.json"
    if not take(path):
        path.write_text(json.dumps(build.learn_merges()))
    return build.tokenizer([tuple(pair) for pair in json.loads(path.read_text())])


def degrade(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Shifted colours, noise, and for half of the batch blur: what a network should see through."""
    size = (len(pictures), 3, 1, 1)
    gain, shift = (torch.from_numpy(rng.normal(0, 0.05, size)).float() for _ in range(2))
    pictures = pictures * (1 + gain) + shift
    half = len(pictures) // 2
    small = F.interpolate(pictures[:half], scale_factor=float(rng.uniform(0.45, 1)), mode="area")
    blurred = F.interpolate(small, size=pictures.shape[-2:], mode="bilinear")
    pictures = torch.cat([blurred, pictures[half:]])
    return (pictures + rng.uniform(0, 0.08) * torch.randn_like(pictures)).clamp(0, 1)


def train_judge(work: Path) -> None:
    pool, judge = Pool(work), vision.Judge()

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        index = rng.integers(POOL, size=32 // world())
        verdict = judge(degrade(pool.pictures(index), rng))
        truth = {"animal": pool.animal, "count": pool.count - 1}
        truth |= {"style": pool.style, "pose": pool.pose}
        losses = [
            F.cross_entropy(getattr(verdict, name), torch.from_numpy(values[index]))
            for name, values in truth.items()
        ]
        return torch.stack(losses).sum()

    vision.save(fit("judge", work, judge, loss_of, lr=2e-3), output(work, "judge"))


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

    vision.save(fit("counter", work, counter, loss_of, lr=2e-3), output(work, "counter"))


class Conditions:
    """The text encoder's states of every caption, and of the empty one."""

    @torch.no_grad()
    def __init__(self, work: Path) -> None:
        tokenizer = load_tokenizer(work)
        clip: CLIPModel = vision.load(build.clip(tokenizer), output(work, "clip"))
        self.rows = {c: i for i, c in enumerate(["", *dict.fromkeys(data.all_captions())])}
        tokens = tokenizer(list(self.rows), padding="max_length", return_tensors="pt").input_ids
        parts = [clip.text_model(input_ids=part) for part in tokens.split(256)]
        self.states = torch.cat([part.last_hidden_state for part in parts])

    def __call__(self, texts: list[str]) -> Tensor:
        """(B, TOKENS, WIDTH)."""
        return self.states[[self.rows[text] for text in texts]]


def spread_timesteps(size: int, rng: np.random.Generator) -> Tensor:
    """One timestep in each of ``size`` equal ranges: a less noisy gradient than free draws.

    The layout, and with it the count, is decided in the noise: its half is drawn three times as
    often as the other.
    """
    spread = (np.arange(size) + rng.random(size)) / size
    spread = np.where(spread < 0.5, 2 * spread, spread)
    return torch.from_numpy((1000 * spread).astype(int))


def train_unet(work: Path) -> None:
    torch.manual_seed(0)
    pool, latents, unet = Pool(work), Latents(work), build.unet()
    states, schedule = Conditions(work), build.scheduler()

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        index = rng.integers(POOL, size=32 // world())
        texts, *_ = pool.captions(index, rng)
        texts = [text if rng.random() > 0.1 else "" for text in texts]
        clean = latents.scale * latents.sample(index)
        noise, timesteps = torch.randn_like(clean), spread_timesteps(len(index), rng)
        noisy = schedule.add_noise(clean, noise, timesteps)
        predicted = unet(noisy, timesteps, encoder_hidden_states=states(texts)).sample
        return F.mse_loss(predicted, schedule.get_velocity(clean, noise, timesteps))

    vision.save(fit("unet", work, unet, loss_of, lr=6e-4), output(work, "unet"))


def distil(work: Path) -> None:
    """Guidance built in (Meng et al. 2023, one scale): a copy of the U-Net learns to predict at
    once what the U-Net predicts with guidance ``build.GUIDANCE``, on noised latents of scenes."""
    pool, latents = Pool(work), Latents(work)
    teacher = vision.load(build.unet(), output(work, "unet"))
    student = vision.load(build.unet(), output(work, "unet")).requires_grad_(True).train()
    states, schedule = Conditions(work), build.scheduler()

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        size = 32 // world()
        index = rng.integers(POOL, size=size)
        texts, *_ = pool.captions(index, rng)
        clean = latents.scale * latents.sample(index)
        timesteps = spread_timesteps(size, rng)
        noisy = schedule.add_noise(clean, torch.randn_like(clean), timesteps)
        with torch.no_grad():
            both = teacher(
                noisy.repeat(2, 1, 1, 1),
                timesteps.repeat(2),
                encoder_hidden_states=states(texts + [""] * size),
            ).sample
        told, untold = both.chunk(2)
        target = untold + build.GUIDANCE * (told - untold)
        predicted = student(noisy, timesteps, encoder_hidden_states=states(texts)).sample
        return F.mse_loss(predicted, target)

    average = fit("distil", work, student, loss_of, lr=3e-4, ema_decay=0.995)
    vision.save(average, output(work, "distil"))


def assemble(work: Path) -> None:
    tokenizer = load_tokenizer(work)
    build.assemble(
        WEIGHTS,
        tokenizer,
        vision.load(build.clip(tokenizer), output(work, "image-tower")),
        vision.load(build.vae(), output(work, "vae")),
        vision.load(build.unet(), output(work, "distil")),
        Latents(work).scale,
    )
    for name in ("counter", "judge"):
        shutil.copy(output(work, name), WEIGHTS)
    output(work, "assemble").touch()


RUN: dict[str, Callable[[Path], None]] = {
    "scenes": train_scenes,
    "latents": encode_scenes,
    "vae": train_vae,
    "clip": train_clip,
    "image-tower": train_image_tower,
    "judge": train_judge,
    "counter": train_counter,
    "unet": train_unet,
    "distil": distil,
    "assemble": assemble,
}
ALONE = ("scenes", "latents", "assemble")  # the stages that one process does for all


def output(work: Path, stage: str) -> Path:
    """The file whose presence says that a stage is finished."""
    special = {"scenes": "scenes.npy", "latents": "latents.npy", "assemble": "assemble.done"}
    return work / special.get(stage, f"{stage}.safetensors")


def take(path: Path) -> bool:
    """Whether ``path`` is there, or could be fetched from TRAINED."""
    if not path.exists() and (TRAINED / path.name).exists():
        shutil.copy(TRAINED / path.name, path)
    return path.exists()


def averaged(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The average's weights in a checkpoint of ``fit``."""
    return {
        key.removeprefix("module."): value
        for key, value in checkpoint["average"].items()
        if key.startswith("module.")
    }


def steps_of(path: Path) -> int:
    """How many steps weights from an unfinished training were trained."""
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def export(work: Path) -> None:
    """Copy what is finished to TRAINED, and of an unfinished training where it stands."""
    TRAINED.mkdir(exist_ok=True)
    for name in ("merges.json", "encoder.safetensors"):
        if (work / name).exists():
            shutil.copy(work / name, TRAINED)
    for stage in STEPS:
        if (finished := output(work, stage)).exists():
            shutil.copy(finished, TRAINED)
            (TRAINED / f"{stage}.average.safetensors").unlink(missing_ok=True)
        elif (checkpoint := work / f"{stage}.ckpt.pt").exists():
            state = torch.load(checkpoint, weights_only=True)
            path = TRAINED / f"{stage}.average.safetensors"
            vision.write(averaged(state), path, step=str(state["step"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, default=data.CACHE, help="caches and checkpoints")
    parser.add_argument("--stages", nargs="+", choices=RUN, default=list(RUN))
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--export", action="store_true", help="only put results into trained/")
    args = parser.parse_args()
    if args.export:
        export(args.work)
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    args.work.mkdir(parents=True, exist_ok=True)
    for stage in args.stages:
        if not take(output(args.work, stage)):
            torch.manual_seed(0)
            if rank() == 0 or stage not in ALONE:
                RUN[stage](args.work)
        if world() > 1:
            dist.barrier()


if __name__ == "__main__":
    main()
