"""The LoRA Stable Diffusion that all methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME, convert_state_dict_to_diffusers
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging as transformers_logging

from benchmarks.api import UserError
from benchmarks.backbone import kernels
from benchmarks.backbone.checkpointing import Plan, recompute_blocks, repeated
from benchmarks.backbone.ddim import Chain, Trajectory, chain, stack
from benchmarks.backbone.fp16_range import HALF, GradientRange
from benchmarks.compute.ledger import Ledger
from benchmarks.config import Precision, load_preset

#: Of the frozen base; LoRA matrices, latents, rewards and the optimizer are always float32.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the attention projections (paper, section 4)


def default_precision() -> Precision:
    """bf16 on CUDA, else fp32."""
    return "bf16" if torch.cuda.is_available() else "fp32"


class LoraSD:
    """Stable Diffusion with a frozen base and trainable LoRA matrices in its U-Net.

    Images are (B, 3, H, W) in [0, 1]; latents are (B, C, h, w), already scaled for the U-Net. With
    rank 0 there are no such matrices: all weights of the U-Net are trained (full fine-tuning), and
    they are what is called LoRA below. ``compile`` puts the U-Net through ``torch.compile``, which
    changes its output by rounding.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        ledger: Ledger,
        *,
        rank: int = 4,
        seed: int = 0,
        device: torch.device | str = "cpu",
        memory: Plan = "store",
        compile: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.ledger, self.rank = ledger, rank
        self.tokenizer, self.text_encoder = pipeline.tokenizer, pipeline.text_encoder
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        for module in (self.text_encoder, self.unet, self.vae):
            module.requires_grad_(False).eval().to(self.device)
        for module in (self.unet, self.vae):  # 8 % faster on a CPU, and what tensor cores want
            module.to(memory_format=torch.channels_last)
        if rank:
            self._add_matrices(seed)
        else:
            self.unet.requires_grad_(True)
        kernels.install(self.unet, self.vae, cpu=self.device.type == "cpu")
        self._range = GradientRange() if self.vae.dtype == torch.float16 else None
        for parameter in self.parameters():
            parameter.data = parameter.data.float()
            if self._range:
                self._range.leaves(parameter)
        config = self.unet.config
        self.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
        ledger.watch("unet", self.unet)
        ledger.watch("decode", self.vae.decoder)
        self._texts: dict[str, Tensor] = {}
        self.memory = memory
        self._price()
        if compile:  # the forward function only: the ledger's hooks stay outside
            torch.compiler.reset()  # only so many graphs are allowed, those of earlier models too
            self.unet.forward = torch.compile(self.unet.forward)

    def _add_matrices(self, seed: int) -> None:
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank,
            init_lora_weights="gaussian",
            target_modules=TARGETS,
        )
        config._register_custom_module({torch.nn.Linear: kernels.LoraLinear})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.unet.add_adapter(config)

    @classmethod
    def load(
        cls, name: str, ledger: Ledger, precision: Precision = "fp32", **options: Any
    ) -> LoraSD:
        """A registered name, its TOML file, a diffusers folder, or a hub id.

        A hub id may end in ``@`` and a revision: ``owner/name@commit``. Only
        safetensors are read. Raises UserError if there is no such model.
        """
        for library in (diffusers_logging, transformers_logging):
            library.disable_progress_bar()
            library.set_verbosity_error()
        model = load_preset(name).model
        if callable(model):
            return cls(model().to(DTYPES[precision]), ledger, **options)
        place, _, revision = (model, "", "") if Path(model).is_dir() else model.partition("@")
        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                place,
                revision=revision or None,
                dtype=DTYPES[precision],
                safety_checker=None,
                requires_safety_checker=False,
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"--backbone {name}: not a Stable Diffusion folder with safetensors weights, nor a "
                f"hub model that can be reached ({str(error).splitlines()[0]})"
            ) from error
        return cls(pipeline, ledger, **options)

    def use(self, memory: Plan) -> None:
        """Work under this activation plan from now on."""
        if memory != self.memory:
            self.memory = memory
            self._price()

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable LoRA matrices (rank 0: all of the U-Net's weights), float32."""
        return [p for n, p in self.unet.named_parameters() if "lora_" in n or not self.rank]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Text conditioning (B, length, width); each distinct prompt is encoded once."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._texts]
        if new:
            tokens = self.tokenizer(
                new,
                padding="max_length",
                truncation=True,
                max_length=self.tokenizer.model_max_length,
                return_tensors="pt",
            )
            with torch.no_grad():
                states = self.text_encoder(tokens.input_ids.to(self.device))[0]
            self._texts |= dict(zip(new, states, strict=True))
        return torch.stack([self._texts[p] for p in prompts])

    def predict(
        self,
        latents: Tensor,
        timestep: int | Sequence[int],
        text: Tensor,
        guidance: float,
        *,
        recompute: bool = True,
    ) -> Tensor:
        """The U-Net's prediction with classifier-free guidance, in one batch of 2B.

        ``timestep`` is one for all or one per sample. A guidance scale of 1 or less means none,
        and one evaluation instead of two. The activation plan decides what is kept of it;
        ``recompute=False`` says that the backward pass follows at once, so that repeating the whole
        forward pass would save no memory.
        """
        if self.memory == "store" or not (recompute and torch.is_grad_enabled()):
            return self._predict(latents, timestep, text, guidance)

        def call(latents: Tensor) -> Tensor:
            return self._predict(latents, timestep, text, guidance)

        return repeated(call, latents, self.ledger.recomputing)

    def _predict(
        self, latents: Tensor, timestep: int | Sequence[int], text: Tensor, guidance: float
    ) -> Tensor:
        timesteps = torch.tensor(timestep, device=self.device).expand(len(latents))
        if guidance > 1:
            empty = self.encode([""]).expand_as(text)
            pair = self._unet(
                torch.cat([latents, latents]),
                torch.cat([timesteps, timesteps]),
                torch.cat([empty, text]),
            )
            without, conditioned = pair.chunk(2)
            return without + guidance * (conditioned - without)
        return self._unet(latents, timesteps, text)

    def _unet(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        scaled = self._range
        if scaled:
            if not self.ledger.in_recomputation:
                scaled.fresh()
            latents = scaled.leaves(latents)
        output = self._bare(latents, timesteps, text).to(latents.dtype)
        return scaled.enters(output) if scaled else output

    def _bare(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The U-Net's pass and nothing else, in the precision of the model."""
        with self._autocast():
            given = latents.to(self.vae.dtype)
            output: Tensor = self.unet(given, timesteps, encoder_hidden_states=text).sample
        return output

    @property
    def train_timesteps(self) -> int:
        """How many timesteps the scheduler was trained with."""
        return int(self.scheduler.config.num_train_timesteps)

    def noised(
        self, latents: Tensor, noise: Tensor, timesteps: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Clean latents brought to ``timesteps``, and what the U-Net should predict there."""
        steps = torch.tensor(timesteps, device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, steps)
        if self.scheduler.config.prediction_type == "v_prediction":
            return noisy, self.scheduler.get_velocity(latents, noise, steps)
        return noisy, noise

    def _autocast(self) -> AbstractContextManager[Any]:
        """Half precision on GPUs, and with all weights, which are float32; else every type fits."""
        half = self.vae.dtype in HALF and not (self.rank and self.device.type == "cpu")
        return torch.autocast(self.device.type, self.vae.dtype) if half else nullcontext()

    def chain(self, steps: int, eta: float = 0.0) -> Chain:
        """The sampling steps of this model's scheduler."""
        return chain(self.scheduler, steps, eta)

    @kernels.one_trajectory()
    def sample(
        self,
        sampler: Chain,
        prompts: Sequence[str],
        noise: Tensor,
        *,
        guidance: float,
        gradient: Sequence[bool] | None = None,
        step_noise: Tensor | None = None,
        connected: bool = True,
        adapted: Sequence[bool] | None = None,
    ) -> Trajectory:
        """Draw trajectories from ``noise`` (B, C, h, w).

        ``gradient[i]`` says whether the prediction of sampling step ``i`` carries gradient (none
        by default). Where it goes: along the latents, which are ``connected``, while log-probs come
        without gradient; or, if they are not, into the log-prob of this step alone, as in a policy
        gradient. ``step_noise`` (B, steps, C, h, w) is needed if the sampler is stochastic.
        ``adapted[i]`` says whether sampling step ``i`` uses the LoRA matrices (all by default).
        """
        gradient = gradient or [False] * len(sampler)
        text = self.encode(prompts)
        latents = noise.to(self.device)
        path, log_probs = [latents], []
        for i, timestep in enumerate(sampler.timesteps):
            alone = adapted is not None and not adapted[i]
            with torch.set_grad_enabled(bool(gradient[i])), self._base(alone):
                output = self.predict(latents, timestep, text, guidance)
            mean = sampler.mean(i, output, latents)
            if sampler.eta > 0:
                assert step_noise is not None, "a stochastic sampler needs step_noise"
                drawn = mean + sampler.std(i) * step_noise[:, i].to(self.device)
                latents = drawn if connected else drawn.detach()
                log_prob = sampler.log_prob(i, latents, mean)
                log_probs.append(log_prob.detach() if connected else log_prob)
            else:
                latents = mean
            path.append(latents)
        together, scaled = stack(log_probs), self._range
        if scaled and together is not None and together.requires_grad:
            together.register_hook(lambda _: scaled.fresh())  # its backward pass has its own scale
        return Trajectory(path, together)

    @contextmanager
    def _base(self, alone: bool) -> Iterator[None]:
        """Without the LoRA matrices, if ``alone``."""
        if alone:
            self.unet.disable_adapters()
        try:
            yield
        finally:
            if alone:
                self.unet.enable_adapters()

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], float32 or wider; only here is the range converted."""
        scaled = GradientRange() if self._range else None
        latents = scaled.leaves(latents) if scaled else latents
        latents = latents / self.vae.config.scaling_factor
        latents = latents + (getattr(self.vae.config, "shift_factor", None) or 0.0)
        decoded = self.vae.decode(latents.to(self.vae.dtype)).sample
        decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
        decoded = scaled.enters(decoded) if scaled else decoded
        return (decoded / 2 + 0.5).clamp(0, 1)

    def lora_state(self) -> dict[str, Tensor]:
        """A copy of the LoRA matrices under peft's names (rank 0: of the U-Net's weights)."""
        state = get_peft_model_state_dict(self.unet) if self.rank else self.unet.state_dict()
        return {k: v.detach().clone() for k, v in state.items()}

    def load_lora_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``lora_state`` gave."""
        if self.rank:
            set_peft_model_state_dict(self.unet, state)
        else:
            self.unet.load_state_dict(state)

    def save_lora(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """Write ``pytorch_lora_weights.safetensors``, which diffusers' pipelines load.

        With rank 0 a folder ``unet``, which ``UNet2DConditionModel.from_pretrained`` loads.
        """
        state = state or self.lora_state()
        if self.rank:
            layers = convert_state_dict_to_diffusers(state)
            StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
            return
        self.unet.save_config(folder / "unet")
        weights = {k: v.cpu().contiguous() for k, v in state.items()}
        save_file(weights, folder / "unet" / SAFETENSORS_WEIGHTS_NAME)

    def _price(self) -> None:
        """Measure what one sample's passes cost."""
        text, zero = self.encode([""]), torch.zeros(1, dtype=torch.long, device=self.device)
        latents = text.new_zeros(1, *self.latent_shape)

        def unet(needs_gradient: bool) -> Callable[[], Tensor]:
            return lambda: self._unet(latents.clone().requires_grad_(needs_gradient), zero, text)

        def decode() -> Tensor:
            return self.decode(latents.clone().requires_grad_())

        with kernels.plain():
            for inside in dict.fromkeys([False, self.memory == "unet"]):
                for module in (self.unet, self.vae):
                    recompute_blocks(module, inside)
                self.ledger.price("unet", unet(True), inside=inside)
                self.ledger.price("unet", unet(False), first=True, inside=inside)
                self.ledger.price("decode", decode, inside=inside)
        for parameter in self.parameters():
            parameter.grad = None
