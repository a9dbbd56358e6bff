"""The same pipeline, noise, prompts and LoRA weights through TRL 0.23.1 and through ours.

TRL's trainers run as they are; only their random draws are replaced by ours, and the gradients
are read where the optimizer would step. Each test prints how close the two were (``pytest -rP``).
"""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.api import Context
from benchmarks.backbone import gaussian
from methods import alignprop, ddpo
from methods._rounds import Round

trl = pytest.importorskip("trl", "0.23")
sd = pytest.importorskip("trl.models.modeling_sd_base")

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, BATCH, GUIDANCE = 4, 6, 5.0


def theirs(trainer: str, folder: Path, context: Context, **settings: Any) -> Any:
    """A TRL trainer on our tiny pipeline, with our reward, prompts and LoRA weights."""
    from accelerate import PartialState
    from peft import set_peft_model_state_dict

    PartialState(cpu=True)
    prompts = iter(context.prompts(0, BATCH))
    config = getattr(trl, f"{trainer}Config")(
        sample_num_steps=STEPS,
        sample_guidance_scale=GUIDANCE,
        train_max_grad_norm=1e9,
        mixed_precision="no",
        allow_tf32=False,
        **settings,
    )
    made = getattr(trl, f"{trainer}Trainer")(
        config,
        lambda images, texts, metadata: (context.reward(images, texts), {}),
        lambda: (next(prompts), {}),
        sd.DefaultDDPOStableDiffusionPipeline(str(folder)),
    )
    set_peft_model_state_dict(made.sd_pipeline.unet, context.backbone.weights())
    noise = context.streams.normal("noise", 0, range(BATCH), context.backbone.latent_shape)
    made.sd_pipeline.sd_pipeline.prepare_latents = lambda *args, **kwargs: noise.clone()
    return made


def captured(step: Callable[[], Any], holder: Any, parameters: list[Tensor]) -> Tensor:
    """The flat gradient when ``holder.optimizer`` last stepped, never having been cleared.

    TRL calls its optimizer after every micro-batch, and accelerate ignores all calls but the last.
    """
    found: list[Tensor] = []

    def capture(*args: Any) -> float:
        found.append(torch.cat([p.grad.detach().clone().flatten() for p in parameters]))
        return 0.0

    holder.optimizer = SimpleNamespace(step=capture, zero_grad=lambda: None)
    step()
    return found[-1]


def trained(unet: torch.nn.Module) -> list[Tensor]:
    return [p for n, p in unet.named_parameters() if "lora_" in n]


def our_alignprop(context: Context, **truncation: Any) -> alignprop.AlignProp:
    config = alignprop.Config(
        batch_size=BATCH,
        micro_batch=BATCH,
        sampling_steps=STEPS,
        guidance=GUIDANCE,
        eta=1.0,
        loss_scale=1.0,
        truncation=alignprop.Truncation(**truncation),
    )
    return alignprop.AlignProp(config, context)


@pytest.fixture(autouse=True)
def same_noise(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's sampler draws our noise for every sampling step, again and again."""
    shape = (STEPS, *context.backbone.latent_shape)
    noise = context.streams.normal("eta", 0, range(BATCH), shape)
    calls = iter(range(10**6))
    monkeypatch.setattr(sd, "randn_tensor", lambda *a, **k: noise[:, next(calls) % STEPS])


def test_images(context: Context, tiny_folder: Path, compared):
    trainer = theirs("AlignProp", tiny_folder, context, train_batch_size=BATCH)
    reference = trainer._generate_samples(BATCH)["images"].detach()
    backbone, streams = context.backbone, context.streams
    shape = backbone.latent_shape
    final = backbone.sample(
        backbone.sampler(STEPS, eta=1.0),
        context.prompts(0, BATCH),
        streams.normal("noise", 0, range(BATCH), shape),
        guidance=GUIDANCE,
        step_noise=streams.normal("eta", 0, range(BATCH), (STEPS, *shape)),
    ).final
    compared("images", backbone.decode(final), reference, 1e-5)


@pytest.mark.parametrize(
    ("truncation", "settings"),
    [
        ({"mode": "full"}, {"truncated_backprop_rand": False, "truncated_backprop_timestep": 0}),
        (
            {"mode": "fixed", "k": 1},
            {"truncated_backprop_rand": False, "truncated_backprop_timestep": STEPS - 1},
        ),
        ({"mode": "per_step"}, {"truncated_rand_backprop_minmax": (0, STEPS)}),
    ],
    ids=["full", "k1", "per_step"],
)
def test_alignprop(
    context: Context, tiny_folder: Path, truncation, settings, monkeypatch, compared
):
    method = our_alignprop(context, **truncation)
    if truncation["mode"] == "per_step":
        mask = [True, False, True, True]
        monkeypatch.setattr(method, "gradient_steps", lambda step, group: mask)
        # Theirs detaches step i when its draw exceeds i.
        draws = iter([0 if keep else STEPS for keep in mask])
        monkeypatch.setattr(random, "randint", lambda low, high: next(draws))
    trainer = theirs("AlignProp", tiny_folder, context, train_batch_size=BATCH, **settings)
    losses: dict[str, float] = {}
    calculate = trainer.calculate_loss

    def calculate_and_keep(rewards: Tensor) -> Tensor:
        loss = calculate(rewards)
        losses["theirs"] = float(loss)
        return loss

    trainer.calculate_loss = calculate_and_keep
    parameters = trained(trainer.sd_pipeline.unet)
    reference = captured(lambda: trainer.step(0, 0), trainer, parameters)
    gradient = captured(
        lambda: losses.update(ours=method.step(0).loss), method, context.backbone.parameters()
    )
    compared("loss", torch.tensor(10 + losses["ours"]), torch.tensor(losses["theirs"]), 1e-6)
    compared("LoRA gradient", gradient, reference, 1e-3)


def test_ddpo(context: Context, tiny_folder: Path, monkeypatch, compared):
    """Sampling, advantages, and the update after the policy has moved, so that clipping counts."""
    monkeypatch.setattr(gaussian, "OUTLIER", float("inf"))  # TRL scores every sampling step
    trainer = theirs(
        "DDPO",
        tiny_folder,
        context,
        sample_batch_size=BATCH,
        sample_num_batches_per_epoch=1,
        train_batch_size=2,
        train_gradient_accumulation_steps=BATCH // 2,
        train_clip_range=1e-3,
        per_prompt_stat_tracking=True,
        per_prompt_stat_tracking_min_count=2,
    )
    config = ddpo.Config(
        samples_per_round=BATCH,
        updates_per_round=1,
        micro_batch=2,
        sampling_steps=STEPS,
        guidance=GUIDANCE,
        clip=1e-3,
        buffer_min=2,
    )
    context.backbone.use(
        "latents"
    )  # the policy moves before the update, which must not keep graphs
    method, kept = ddpo.DDPO(config, context), SimpleNamespace(losses=[])
    generator = torch.Generator().manual_seed(5)
    moves = [0.03 * torch.randn(p.shape, generator=generator) for p in method.optimizer.parameters]

    def move(parameters: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, change in zip(parameters, moves, strict=True):
                parameter += change

    generate, advantages = trainer._generate_samples, trainer.stat_tracker.update
    calculate = trainer.calculate_loss

    def generate_and_move(**settings: Any) -> Any:
        kept.samples, pairs = generate(**settings)
        move(trained(trainer.sd_pipeline.unet))
        return kept.samples, pairs

    def keep_advantages(*args: Any) -> Any:
        kept.advantages = advantages(*args)
        return kept.advantages

    def keep_loss(*args: Any) -> Any:
        result = calculate(*args)
        kept.losses.append(float(result[0]))
        kept.clipped = max(getattr(kept, "clipped", 0.0), float(result[2]))
        return result

    trainer._generate_samples, trainer.calculate_loss = generate_and_move, keep_loss
    trainer.stat_tracker.update = keep_advantages
    parameters = trained(trainer.sd_pipeline.unet)
    reference = captured(lambda: trainer.step(0, 0), trainer, parameters)

    sample = method.sample

    def sample_and_move(step: int) -> Round:
        result = sample(step)
        move(context.backbone.parameters())
        return result

    method.sample = sample_and_move  # type: ignore[method-assign]
    gradient = captured(
        lambda: setattr(kept, "ours", method.step(0).loss), method, context.backbone.parameters()
    )
    assert method.round is not None
    (samples,) = kept.samples
    compared("latents", method.round.latents[:, 1:], samples["next_latents"], 1e-5)
    compared("log-probs", method.round.log_probs, samples["log_probs"], 1e-5)
    compared("advantages", method.round.advantages, torch.as_tensor(kept.advantages), 1e-4)
    mean = sum(kept.losses) / len(kept.losses)
    # The loss is a mean of terms near +1 and -1.
    compared("loss + 1", torch.tensor(kept.ours + 1), torch.tensor(mean + 1), 3e-5)
    assert kept.clipped > 0
    compared("LoRA gradient", gradient, reference, 1e-3)
