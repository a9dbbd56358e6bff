"""The contracts between methods, rewards and the harness. Importing this needs no torch."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

from benchmarks import content

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from benchmarks.streams import Streams


class UserError(Exception):
    """Something the user can mend: printed as one line, without a traceback."""


@dataclass(frozen=True)
class Within:
    """What a number may be, always finite; said in a field's type, checked in ``config.py``.

    ``lr: Positive`` is short for ``lr: Annotated[float, Within(above=0)]``. A field that a subclass
    declares anew without a range keeps the one it had.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        inside = self.least <= value <= self.most and self.above < value < self.below
        return inside and math.isfinite(value)

    def __str__(self) -> str:
        ends = {"at least": self.least, "above": self.above}
        ends |= {"at most": self.most, "below": self.below}
        words = [f"{word} {end:g}" for word, end in ends.items() if math.isfinite(end)]
        return " and ".join(words) or "finite"


Count = Annotated[int, Within(least=1)]
Index = Annotated[int, Within(least=0)]
Finite = Annotated[float, Within()]
Positive = Annotated[float, Within(above=0)]
NotNegative = Annotated[float, Within(least=0)]
Share = Annotated[float, Within(above=0, most=1)]
ZeroToOne = Annotated[float, Within(least=0, most=1)]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Prompts, splits and how they are evaluated."""

    name: str
    """As in `--list tasks`, or the name of its file."""
    train: tuple[str, ...]
    """The prompts that methods train on; at least one, none empty."""
    unseen: tuple[str, ...]
    """Prompts that are only evaluated; at least one, none empty."""
    held_out: tuple[str, ...]
    """Names of rewards that every evaluation reports and nobody trains on."""
    train_every: Count
    """Every so many training prompts one is evaluated."""
    train_images: Count
    """Pictures per evaluated training prompt."""
    unseen_images: Count
    """Pictures per unseen prompt."""
    guard: tuple[str, ...] = ()
    """Rewards, reported like the held-out ones, that say whether a picture still shows what was
    asked for. Where they fall too far a run is not counted, see ``compute/floors.py``."""

    def evaluation_prompts(self) -> dict[str, list[str]]:
        """The evaluation's splits, `train` and `unseen`, each with one prompt per picture."""
        chosen = self.train[:: self.train_every]
        return {
            "train": [p for p in chosen for _ in range(self.train_images)],
            "unseen": [p for p in self.unseen for _ in range(self.unseen_images)],
        }


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How the pictures of an evaluation are drawn, and in which space they are compared."""

    sampling_steps: Count
    """Steps of the sampler without noise, at most the backbone's training timesteps (less its
    scheduler's `steps_offset`)."""
    guidance: NotNegative
    """The guidance scale; 1: no guidance."""
    features: str
    """The reward whose `features` are the space of diversity, drift and collapse."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A base model, and the settings that suit it; one of `--list backbones`."""

    name: str
    """Whose settings these are, as cells record it."""
    model: str | Callable[..., Any]
    """A diffusers folder, a hub id, a function that returns a diffusers pipeline, or the class of a
    backbone of one's own family, a ``benchmarks.backbone.base.BaseBackbone``."""
    budget: str
    """KIND=AMOUNT per cell where the user gives none."""
    task: str
    """The name of the task where the user gives none."""
    evaluation: EvaluationSettings
    """The same for every method."""
    resolution: tuple[Count, ...] | None = None
    """Height and width of the pictures in pixels; None: the model's own."""
    every: Mapping[str, Any] = field(default_factory=dict)
    """Values over the Config's defaults of every method, of the fields that all have."""
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Per method, values over its Config's defaults, nested like it."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step did; the harness records it."""

    reward: float
    """The mean train reward of the images that this step saw, in the reward's unit."""
    loss: float
    """What was minimised, in the method's own unit."""
    grad_norm: float
    """Euclidean norm of the gradient before clipping; a step where it is not finite is skipped."""
    informative: bool = True
    """False if nothing in the step depends on the rewards, because they are all alike."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Whatever else is worth a column in steps.jsonl, by name."""


Scores = Callable[[Any, "Tensor", Sequence[str]], "Tensor"]


def _one_per_picture(call: Scores) -> Scores:
    """A reward's ``__call__`` that refuses to return anything but B floating-point numbers.

    Values of another shape would be broadcast against others, and gradients multiplied.
    """

    @functools.wraps(call)
    def checked(self: Any, images: Tensor, prompts: Sequence[str]) -> Tensor:
        values = call(self, images, prompts)
        shape, wanted = tuple(getattr(values, "shape", ())), (len(images),)
        if shape != wanted or not getattr(values, "is_floating_point", bool)():
            what = f"a {type(values).__name__} of shape {shape}, {getattr(values, 'dtype', 'none')}"
            raise UserError(
                f"reward {type(self).__name__} returned {what}; it must return a floating-point "
                f"tensor of shape {wanted}, a number for each picture"
            )
        return values

    return checked


class Reward(ABC):
    """Scores pictures; higher is better.

    Subclasses set the class variables and implement ``__call__``. A reward that is not
    ``differentiable`` is called without gradient and refused by methods that need one.
    """

    unit: ClassVar[str]
    """Of its values, for axes and tables."""
    reference: ClassVar[str]
    """Where it comes from: a paper, a repository file."""
    differentiable: ClassVar[bool]
    """Whether its values carry a gradient to the images."""
    optimisable: ClassVar[bool] = True
    """Whether methods may train on it; False for judges, which would lose their worth."""
    stand_in: ClassVar[str | None] = None
    """Name of a differentiable reward that approximates this one, for methods with a gradient."""
    recorded: ClassVar[str] = ""
    """What else its values depend on, such as the preprocessing; part of a cell's identity."""
    calibrates: ClassVar[bool] = False
    """Whether `calibrate` must be called before the first value."""
    standardised: ClassVar[bool] = False
    """Whether it is published in deviations from a mean, as ImageReward is."""

    def __init_subclass__(cls) -> None:
        if "__call__" in vars(cls):
            cls.__call__ = _one_per_picture(cls.__call__)  # type: ignore[method-assign,assignment]

    @abstractmethod
    def __init__(self, device: Any) -> None: ...

    @abstractmethod
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """``images`` (B, 3, H, W) in [0, 1] and B prompts to rewards (B,)."""

    @classmethod
    def content(cls) -> str:
        """A digest of the code and weights that its values depend on and no name says, or ''.

        Part of a cell's identity, see ``benchmarks.content``.
        """
        return content.code(cls)

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        """The prompts that it does not read to their end, and what it reads of them."""
        return {}

    def calibrate(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Any]:
        """Set whatever depends on the base model. ``images`` are its pictures of the ``prompts``.

        Called once, before the first reward and off the clock; returns what is to be recorded.
        """
        return {}

    def features(self, images: Tensor) -> Tensor:
        """Image features (B, D) whose cosines compare pictures, for a reward that has them.

        Evaluation measures diversity, drift and collapse in this space.
        """
        raise UserError(f"{type(self).__name__} has no image features; use another feature space")


class RewardFunction(Protocol):
    """A reward as a method sees it: counted by the ledger."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor: ...


class PromptSource(Protocol):
    """The training prompts of ``count`` samples of an optimizer step."""

    def __call__(self, step: int, count: int) -> list[str]: ...


#: What is kept for the backward pass: all activations; the latents between sampling steps; or of
#: each pass its blocks' inputs too.
Keep = Literal["all", "latents", "blocks"]

#: What a backbone makes of B prompts: tensors of B rows each. Methods hand it on as it is.
Condition = tuple["Tensor", ...]


class Sampler(Protocol):
    """The rule of one sampling step, from noise (step 0) to clean latents (the last).

    Latents are (B, C, h, w). ``output`` is what ``Backbone.predict`` gave for the same latents at
    ``timesteps[i]``; only the backbone's family knows whether that is noise, a velocity or a flow.
    With ``eta`` 0 the next latents are the mean; else they are drawn from a Gaussian around it.
    """

    @property
    def eta(self) -> float:
        """How stochastic the steps are: 0 is deterministic, 1 the full noise of the family."""

    @property
    def timesteps(self) -> Sequence[float]:
        """The scheduler's index of each sampling step, first to last, for ``Backbone.predict``."""

    def __len__(self) -> int:
        """The number of sampling steps."""

    def mean(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        """Mean of the latents after sampling step ``i``."""

    def std(self, i: int) -> float:
        """Standard deviation of the latents after sampling step ``i``; 0 if ``eta`` is."""

    @property
    def scored(self) -> Sequence[int]:
        """The sampling steps that a policy gradient scores by ``log_prob``, in order.

        Those that have a density, without such as are nearly deterministic: the gradient of their
        log-density would drown that of all others. None for a deterministic sampler. See
        ``benchmarks.backbone.gaussian.scored``.
        """

    def log_prob(self, i: int, value: Tensor, mean: Tensor) -> Tensor:
        """Log-density (B,) of the next latents ``value``, averaged over their dimensions.

        Only where ``std`` is above 0.
        """

    def x0(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        """The clean latents that ``output`` predicts."""

    def noise(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        """The noise that ``output`` predicts: ``latents`` are its mix with ``x0``."""

    def renoised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """Clean latents brought to the noise of ``timesteps[i]``."""

    def denoised(self, i: int, latents: Tensor, noise: Tensor) -> Tensor:
        """The clean latents that ``latents`` at ``timesteps[i]`` are the mix of with ``noise``.

        The inverse of ``renoised``, where the noise is known; not at a timestep of noise alone.
        """


@dataclass(frozen=True)
class Trajectory:
    """A denoising trajectory."""

    latents: list[Tensor]
    """x_T ... x_0, sampling steps + 1 tensors (B, C, h, w)."""
    log_probs: Tensor | None
    """(B, scored sampling steps), or None if the sampler scores none."""

    @property
    def final(self) -> Tensor:
        """x_0, (B, C, h, w)."""
        return self.latents[-1]


class Backbone(Protocol):
    """What methods may ask of a model, whatever its family.

    Images are (B, 3, H, W) in [0, 1], latents (B, C, h, w) as the denoiser takes them, both
    float32 on ``device``. Every pass is counted by the ledger.
    """

    @property
    def device(self) -> torch.device:
        """Where everything is computed. Arguments on another device are moved there."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one sample's latents."""

    @property
    def keep(self) -> Keep:
        """What is kept for the backward pass. Gradients do not depend on it."""

    @property
    def train_timesteps(self) -> int:
        """Timesteps of the training are the integers from 0 up to this number, exclusive."""

    def parameters(self) -> list[torch.nn.Parameter]:
        """The weights that are trained, float32: LoRA matrices, or all of the denoiser."""

    def sampler(self, steps: int, eta: float = 0.0) -> Sampler:
        """A sampler of so many sampling steps.

        Raises UserError if the model cannot be sampled in so many.
        """

    def windowed(self, sampler: Sampler, window: Collection[int]) -> Sampler:
        """The same sampler with noise in these sampling steps only."""

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The conditioning of B prompts. Each distinct prompt is encoded once."""

    def predict(
        self,
        latents: Tensor,
        timestep: float | Sequence[float],
        condition: Condition,
        guidance: float,
        *,
        recompute: bool = True,
    ) -> Tensor:
        """The denoiser's output (B, C, h, w) with classifier-free guidance.

        ``timestep`` is one for all or one per sample. A ``guidance`` of 1 or less means none, and
        one evaluation per sample instead of two; where a family's denoiser takes guidance as an
        input it is always one. ``recompute=False`` says that the backward pass
        follows at once, so that repeating the whole forward pass would save no memory.
        """

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
        """Draw trajectories from ``noise`` (B, C, h, w).

        ``gradient[i]`` says whether the prediction of sampling step ``i`` carries gradient (none
        by default). Where it goes: along the latents, which are ``connected``, while log-probs come
        without gradient; or, if they are not, into the log-prob of this step alone, as in a policy
        gradient, so that only scored steps carry any. ``step_noise`` (B, steps, C, h, w) is needed
        if the sampler is stochastic. ``adapted[i]`` says whether sampling step ``i`` uses
        the LoRA matrices (all by default).
        """

    def adapting(self, wanted: bool) -> AbstractContextManager[None]:
        """Within it predictions are those of the trained model, or of the base model.

        The base model is the reference of methods that stay near it. A backward pass through its
        predictions belongs within, too. Raises UserError if all weights are trained.
        """

    def with_weights(self, values: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Within it the trained weights have these values, in the order of ``parameters``.

        For predictions of an earlier policy, without gradient.
        """

    def count(self, network: torch.nn.Module, *example: Tensor) -> None:
        """Let the ledger count the passes of a network of the method's own, such as a baseline.

        ``example`` are its arguments for one sample, on ``device``; the first has a row per sample.
        One network per method.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of clean latents, with gradient."""

    def noised(
        self, latents: Tensor, noise: Tensor, timesteps: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Clean latents brought to one timestep per sample, and what ``predict`` should give there.

        The mean squared distance to it is the model's own training loss.
        """


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The train reward of the base model's pictures of training prompts, in the reward's unit.

    It never changes during a run. A reward that is ``standardised`` has mean 0 and deviation 1.
    """

    mean: float
    """Over pictures, each prompt counted alike."""
    deviation: float
    """Standard deviation over the same pictures, above 0."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that a method is handed."""

    backbone: Backbone
    """The model, with the weights that are trained."""
    reward: RewardFunction
    """(images (B, 3, H, W) in [0, 1], B prompts) to (B,): the train reward, counted, and finite:
    a value that is not counts as an average one of the base model and carries no gradient."""
    prompts: PromptSource
    """(optimizer step, count) to that many training prompts. The same step and count always give
    the same prompts. Raises UserError if count is below 1."""
    streams: Streams
    """All random numbers, named by purpose, step and global sample index."""
    scale: Callable[[], Scale]
    """The base model's mean and deviation of the train reward, for settings that have its unit. It
    is measured when it is first called, off the ledger; the place for that is ``__init__``."""


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Settings of the optimizer that all methods use, ``benchmarks.optim.Optimizer``."""

    lr: Positive = field(default=1e-3, metadata={"help": "learning rate"})
    weight_decay: NotNegative = field(default=1e-4, metadata={"help": "decoupled weight decay"})
    clip: Positive = field(default=1.0, metadata={"help": "largest gradient norm"})
    beta2: Annotated[float, Within(least=0, below=1)] = field(
        default=0.999, metadata={"help": "decay of the second moment"}
    )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What every method's ``Config`` inherits: all that planner and checks read or change of it.

    A method gives the fields defaults of its own, with their sources. If each of its optimizer
    steps draws one batch, it inherits ``Batch`` instead. Else it says through ``update_size`` and
    ``resized`` how many samples it draws, whatever its own fields are called.
    """

    micro_batch: Count = field(default=8, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=50, metadata={"help": "sampling steps [ours]"})
    guidance: NotNegative = field(default=7.5, metadata={"help": "guidance scale [ours]"})

    @property
    def update_size(self) -> int:
        """How many samples one optimizer step learns from."""
        raise NotImplementedError

    def resized(self, update_size: int) -> Self:
        """The same with so many samples per optimizer step; sets it draws change in proportion.

        Raises UserError for a number that does not divide the sets as the method needs it.
        """
        raise NotImplementedError

    def resampled(self, sampling_steps: int) -> Self:
        """The same with so many sampling steps, and all that counts sampling steps moved along."""
        return replace(self, sampling_steps=sampling_steps)

    def small(self, samples: int, sampling_steps: int) -> Self:
        """A configuration for checks that draws at most so many samples, in two micro-batches."""
        return replace(self.resampled(sampling_steps), micro_batch=samples // 2).resized(samples)


@dataclass(frozen=True, kw_only=True)
class Batch(Sampling):
    """The ``Sampling`` of a method whose optimizer steps draw one batch each."""

    batch_size: Count = field(default=64, metadata={"help": "samples per update [ours]"})

    @property
    def update_size(self) -> int:
        """How many samples one optimizer step learns from."""
        return self.batch_size

    def resized(self, update_size: int) -> Self:
        """The same with so many samples per optimizer step."""
        return replace(self, batch_size=update_size)


class Method(ABC):
    """One way of fine-tuning: it owns what one optimizer step does, and nothing else."""

    Config: ClassVar[type]
    """Its options: a frozen keyword-only dataclass, a ``Sampling``; every field has a default."""
    needs: ClassVar[frozenset[str]]
    """`reward` or `reward_grad`: with the latter it is refused for rewards without a gradient."""

    @abstractmethod
    def __init__(self, config: Any, context: Context) -> None: ...

    @abstractmethod
    def step(self, step: int) -> StepResult:
        """Do optimizer step number ``step`` (from 0)."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything but the backbone's weights that the next step depends on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What every selection's ``Config`` inherits."""

    candidates: Count = field(
        default=4, metadata={"help": "drawn for each picture delivered [ours]"}
    )
    sampling_steps: Count = field(default=50, metadata={"help": "those of the evaluation"})
    guidance: NotNegative = field(default=7.5, metadata={"help": "that of the evaluation"})


class Selection(ABC):
    """One way of drawing better pictures without training.

    It owns what is done for one picture that is delivered, and that is what its compute is paid
    for: the ledger counts all passes of its candidates.
    """

    Config: ClassVar[type]
    """Its options: a frozen keyword-only dataclass, a ``Candidates``; every field has a default."""
    needs: ClassVar[frozenset[str]]
    """`reward` or `reward_grad`, as of a ``Method``."""

    @abstractmethod
    def __init__(self, config: Any, context: Context) -> None: ...

    @abstractmethod
    def draw(self, prompts: Sequence[str], pictures: Sequence[int]) -> Tensor:
        """An image for each of B prompts, (B, 3, H, W) in [0, 1].

        ``pictures`` are their numbers, which name their random numbers: candidate ``n`` of picture
        ``i`` starts from ``streams.normal("evaluation", n, [i], latent_shape)``, so that candidate
        0 starts from the noise that the evaluation of a trained model starts from.
        """
