"""What all model families share: what is trained, guidance, checkpointing, sampling, prices.

A family is a subclass that hands over its modules and says in a few members what is its own; see
``stable_diffusion.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from peft import (
    LoraConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.api import Condition, Keep, Sampler, Trajectory, UserError
from benchmarks.backbone import kernels
from benchmarks.backbone.checkpointing import recompute_blocks, repeated
from benchmarks.backbone.fp16_range import HALF, GradientRange
from benchmarks.backbone.windowed import Windowed
from benchmarks.compute.ledger import Ledger, Part, Pass
from benchmarks.cut_prompts import cut

#: The file of a LoRA checkpoint, by the name that diffusers' pipelines look for.
LORA_FILE = "pytorch_lora_weights.safetensors"

#: The ledger's prices by the structure of the model.
_prices: dict[str, dict[Pass, float]] = {}


class BaseBackbone(ABC):
    """A frozen model with trainable LoRA matrices in its denoiser: a ``benchmarks.api.Backbone``.

    With rank 0 there are no such matrices, and all weights of the denoiser are trained. LoRA
    matrices, latents, rewards and the optimizer are float32 whatever the model's precision.
    ``compile`` puts the denoiser through ``torch.compile``, which changes its output by rounding.

    ``denoiser`` takes latents as its first argument; ``autoencoder`` (or its part ``decoder``)
    makes images of them; ``others`` are used without gradient, such as text encoders.
    """

    #: What the family's diffusers pipelines call the denoiser; it names weights in checkpoints.
    component: ClassVar[str]
    #: Ends of the names of the layers that get LoRA matrices: by default the attention projections
    #: (paper, section 4).
    targets: ClassVar[Sequence[str]] = ("to_q", "to_k", "to_v", "to_out.0")
    #: Whether guidance takes a second pass, without the prompt; else the denoiser is told of it.
    two_passes: bool = True

    def __init__(
        self,
        ledger: Ledger,
        *,
        denoiser: Any,
        autoencoder: Any,
        others: Sequence[nn.Module] = (),
        latent_shape: tuple[int, int, int],
        rank: int = 4,
        seed: int = 0,
        device: torch.device | str = "cpu",
        keep: Keep = "all",
        compile: bool = False,
    ) -> None:
        self.device, self.latent_shape = torch.device(device), latent_shape
        self.ledger, self.rank = ledger, rank
        self.denoiser, self.autoencoder, self.others = denoiser, autoencoder, others
        for module in self.modules():
            module.requires_grad_(False).eval().to(self.device)
        for module in (denoiser, autoencoder):  # 8 % faster on a CPU, and what tensor cores want
            module.to(memory_format=torch.channels_last)
        if rank:
            self._add_matrices(seed)
        else:
            denoiser.requires_grad_(True)
        nn.Module.to(autoencoder, self.autoencoder_dtype(self.dtype))  # diffusers' own warns
        kernels.install(denoiser, autoencoder, cpu=self.device.type == "cpu")
        self._range = GradientRange() if self.dtype == torch.float16 else None
        for parameter in self.parameters():
            parameter.data = parameter.data.float()
            if self._range:
                self._range.unscale_gradient_out(parameter)
        ledger.watch("denoiser", denoiser)
        ledger.watch("decoder", getattr(autoencoder, "decoder", autoencoder))
        self._conditions: dict[str, Condition] = {}  # of single prompts, without the batch
        self.use(keep)
        if compile:  # the forward function only: the ledger's hooks stay outside
            torch.compiler.reset()  # only so many graphs are allowed, those of earlier models too
            denoiser.forward = torch.compile(denoiser.forward)

    # What a family says.

    @property
    @abstractmethod
    def train_timesteps(self) -> int:
        """Timesteps of the training are the integers from 0 up to this number, exclusive."""

    @abstractmethod
    def sampler(self, steps: int, eta: float = 0.0) -> Sampler:
        """A sampler of so many sampling steps. Raises UserError for a number that cannot be."""

    @abstractmethod
    def noised(
        self, latents: Tensor, noise: Tensor, timesteps: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Clean latents brought to ``timesteps``, and what ``predict`` should give there."""

    @abstractmethod
    def conditions(self, prompts: Sequence[str]) -> Condition:
        """The conditioning of B distinct prompts, anew. Called without gradient."""

    @abstractmethod
    def denoise(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """One pass of the denoiser, (B, C, h, w), in its own precision; ``timesteps`` is (B,)."""

    @abstractmethod
    def pixels(self, latents: Tensor) -> Tensor:
        """One pass of the decoder, (B, 3, H, W) in [-1, 1], in its own precision."""

    # What all share.

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the frozen model, its autoencoder aside."""
        parts = [self.denoiser, *self.others, self.autoencoder]
        frozen = (p.dtype for part in parts for p in part.parameters() if not p.requires_grad)
        return next(frozen, torch.float32)

    def autoencoder_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The autoencoder's precision in a model of this one."""
        return dtype

    def modules(self) -> list[nn.Module]:
        """All parts of the model."""
        return [self.denoiser, self.autoencoder, *self.others]

    def parameters(self) -> list[nn.Parameter]:
        """The weights that are trained: LoRA matrices, or with rank 0 all of the denoiser's."""
        return [p for n, p in self.denoiser.named_parameters() if "lora_" in n or not self.rank]

    def _add_matrices(self, seed: int) -> None:
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank,
            init_lora_weights="gaussian",
            target_modules=list(self.targets),
        )
        config._register_custom_module({nn.Linear: kernels.LoraLinear})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(config, self.denoiser)

    def use(self, keep: Keep) -> None:
        """Keep this for the backward pass from now on."""
        self.keep = keep
        parts: dict[Part, nn.Module] = {"denoiser": self.denoiser, "decoder": self.autoencoder}
        self.ledger.block_recompute = frozenset(
            part for part, module in parts.items() if recompute_blocks(module, keep == "blocks")
        )

    def windowed(self, sampler: Sampler, window: Collection[int]) -> Sampler:
        """Stochastic in these sampling steps only. See ``benchmarks.api.Backbone``."""
        return Windowed(sampler, self.sampler(len(sampler)), window)

    def tokenizers(self) -> list[Any]:
        """Those of the text encoders; none where prompts of any length are read."""
        return []

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        """The prompts that the text encoders do not read to their end, and what they read."""
        found: dict[str, str] = {}
        for tokenizer in self.tokenizers():
            found |= cut(tokenizer, prompts, tokenizer.model_max_length)
        return found

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The conditioning of B prompts; each distinct prompt is encoded once."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._conditions]
        if new:
            with torch.no_grad():
                made = self.conditions(new)
            self._conditions |= dict(zip(new, zip(*made, strict=True), strict=True))
        rows = [self._conditions[p] for p in prompts]
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))

    def predict(
        self,
        latents: Tensor,
        timestep: float | Sequence[float],
        condition: Condition,
        guidance: float,
        *,
        recompute: bool = True,
    ) -> Tensor:
        """The denoiser's output with classifier-free guidance, in one batch of 2B.

        See ``benchmarks.api.Backbone``.
        """

        def call(latents: Tensor) -> Tensor:
            return self._guided(latents, timestep, condition, guidance)

        if self.keep == "all" or not (recompute and torch.is_grad_enabled()):
            return call(latents)
        return repeated(call, latents, self.ledger.recomputing)

    def _guided(
        self,
        latents: Tensor,
        timestep: float | Sequence[float],
        condition: Condition,
        guidance: float,
    ) -> Tensor:
        timesteps = torch.tensor(timestep, device=self.device).expand(len(latents))
        if guidance <= 1 or not self.two_passes:
            return self._denoised(latents, timesteps, self.told(condition, guidance))
        without, conditioned = self._denoised(
            torch.cat([latents, latents]),
            torch.cat([timesteps, timesteps]),
            self._with_empty(condition),
        ).chunk(2)
        return without + guidance * (conditioned - without)

    def told(self, condition: Condition, guidance: float) -> Condition:
        """The conditioning of one pass with its guidance scale, for a denoiser that is told."""
        return condition

    def _with_empty(self, condition: Condition) -> Condition:
        """The empty prompt's conditioning before that of B prompts: 2B rows.

        Along a trajectory these are the same tensors at every step, so that kernels know the text.
        """

        def both() -> Condition:
            empty = self.encode([""])
            pairs = zip(empty, condition, strict=True)
            return tuple(torch.cat([none.expand_as(text), text]) for none, text in pairs)

        return kernels.cached_per_trajectory("with the empty prompt", condition[0], both)

    def _denoised(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """One pass of the denoiser, float32, with gradients in its range."""
        scaled = self._range
        if scaled:
            if not self.ledger.in_recomputation:
                scaled.reset()
            latents = scaled.unscale_gradient_out(latents)
        output = self.bare(latents, timesteps, condition).to(latents.dtype)
        return scaled.scale_gradient_in(output) if scaled else output

    def bare(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The denoiser's pass and nothing else, in the precision of the model."""
        with self._autocast():
            return self.denoise(latents.to(self.dtype), timesteps, condition)

    def _autocast(self) -> AbstractContextManager[Any]:
        """Half precision on GPUs, and with all weights, which are float32; else every type fits."""
        half = self.dtype in HALF and not (self.rank and self.device.type == "cpu")
        return torch.autocast(self.device.type, self.dtype) if half else nullcontext()

    @kernels.one_trajectory()
    def sample(
        self,
        sampler: Sampler,
        prompts: Sequence[str],
        noise: Tensor,
        *,
        guidance: float,
        gradient: Sequence[bool] | None = None,
        step_noise: Tensor | None = None,
        connected: bool = True,
        adapted: Sequence[bool] | None = None,
    ) -> Trajectory:
        """Draw trajectories from ``noise`` (B, C, h, w). See ``benchmarks.api.Backbone``."""
        gradient = gradient or [False] * len(sampler)
        condition = self.encode(prompts)
        latents = noise.to(self.device)
        path, log_probs = [latents], list[Tensor]()
        for i, timestep in enumerate(sampler.timesteps):
            adapt = adapted is None or adapted[i]
            with torch.set_grad_enabled(bool(gradient[i])), self.adapting(adapt):
                output = self.predict(latents, timestep, condition, guidance)
            mean = sampler.mean(i, output, latents)
            latents, std = mean, sampler.std(i)
            if std > 0:
                assert step_noise is not None, "a stochastic sampler needs step_noise"
                latents = mean + std * step_noise[:, i].to(self.device)
            if not connected:
                latents = latents.detach()
            if i in sampler.scored:
                log_prob = sampler.log_prob(i, latents, mean)
                log_probs.append(log_prob.detach() if connected else log_prob)
            path.append(latents)
        stacked, scaled = torch.stack(log_probs, 1) if log_probs else None, self._range
        if scaled and stacked is not None and stacked.requires_grad:
            stacked.register_hook(lambda _: scaled.reset())  # its backward pass has its own scale
        return Trajectory(path, stacked)

    @contextmanager
    def adapting(self, wanted: bool) -> Iterator[None]:
        """With the LoRA matrices, or as the base model. Raises UserError if all weights train."""
        if not (wanted or self.rank):
            raise UserError("all weights are trained: the base model is gone; use LoRA matrices")
        if wanted:
            yield
            return
        layers = [m for m in self.denoiser.modules() if isinstance(m, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    @contextmanager
    def with_weights(self, values: Sequence[Tensor]) -> Iterator[None]:
        """With these values for the trained weights. See ``benchmarks.api.Backbone``."""
        parameters = self.parameters()
        present = [parameter.data for parameter in parameters]
        # Not copied into place: graphs that hold the present values stay valid.
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value.to(parameter.data)
        try:
            yield
        finally:
            for parameter, value in zip(parameters, present, strict=True):
                parameter.data = value

    def count(self, network: nn.Module, *example: Tensor) -> None:
        """Count and price a network of the method's own. See ``benchmarks.api.Backbone``."""
        self.ledger.watch("method", network)
        self.ledger.price("method", lambda: network(*example))
        network.zero_grad()

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], float32 or wider; only here is the range converted."""
        scaled = GradientRange() if self._range else None
        decoded = self.pixels(scaled.unscale_gradient_out(latents) if scaled else latents)
        decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
        decoded = scaled.scale_gradient_in(decoded) if scaled else decoded
        return (decoded / 2 + 0.5).clamp(0, 1)

    def price(self) -> None:
        """Tell the ledger what one sample's passes cost, whatever is kept.

        Measured once for all models of one structure, as the cells of a comparison have.
        """
        condition = self.encode([""])
        shapes = [self.latent_shape, *(tuple(part.shape) for part in condition)]
        parts = [(str(m), str(getattr(m, "config", ""))) for m in (self.denoiser, self.autoencoder)]
        structure = str((type(self), self.dtype, shapes, parts))
        if structure not in _prices:
            self._measure_prices(condition)
            prices = self.ledger.prices.items()
            _prices[structure] = {kind: price for kind, price in prices if kind.part != "reward"}
        self.ledger.prices |= _prices[structure]

    def _measure_prices(self, condition: Condition) -> None:
        zero = torch.zeros(1, dtype=torch.long, device=self.device)
        latents = torch.zeros(1, *self.latent_shape, device=self.device)

        def denoiser(through: bool) -> Callable[[], Tensor]:
            return lambda: self._denoised(latents.clone().requires_grad_(through), zero, condition)

        def decoder() -> Tensor:
            return self.decode(latents.clone().requires_grad_())

        with kernels.reference_operators():
            for by_block in (False, True):
                for module in (self.denoiser, self.autoencoder):
                    recompute_blocks(module, by_block)
                self.ledger.price("denoiser", denoiser(True), by_block=by_block)
                self.ledger.price("denoiser", denoiser(False), weights_only=True, by_block=by_block)
                self.ledger.price("decoder", decoder, by_block=by_block)
        self.use(self.keep)
        for parameter in self.parameters():
            parameter.grad = None

    def weights(self) -> dict[str, Tensor]:
        """A copy of the trained weights by name: LoRA matrices under peft's names, or all."""
        trained = get_peft_model_state_dict(self.denoiser) if self.rank else None
        state = self.denoiser.state_dict() if trained is None else trained
        return {k: v.detach().clone() for k, v in state.items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Restore what ``weights`` gave."""
        if self.rank:
            set_peft_model_state_dict(self.denoiser, weights)
        else:
            self.denoiser.load_state_dict(weights)

    def lora_names(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """LoRA matrices under the names that checkpoints of the family have: peft's."""
        return weights

    def save_weights(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write a LoRA checkpoint as the pipelines' own ``load_lora_weights`` loads it.

        With rank 0 a folder named for the component, which its ``from_pretrained`` loads.
        """
        weights = weights or self.weights()
        if self.rank:
            layers = self.lora_names(weights)
            file, weights = LORA_FILE, {f"{self.component}.{k}": v for k, v in layers.items()}
        else:
            folder, file = folder / self.component, SAFETENSORS_WEIGHTS_NAME
        folder.mkdir(parents=True, exist_ok=True)
        if not self.rank and hasattr(self.denoiser, "save_config"):
            self.denoiser.save_config(folder)
        flat = {k: v.cpu().contiguous() for k, v in weights.items()}
        save_file(flat, folder / file, metadata={"format": "pt"})
