"""The contracts between methods, rewards and the harness. Importing this needs no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.backbone.lora_sd import LoraSD
    from benchmarks.streams import Streams


class UserError(Exception):
    """Something the user can mend: printed as one line, without a traceback."""


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
    train_every: int
    """Every so many training prompts one is evaluated; at least 1."""
    train_images: int
    """Pictures per evaluated training prompt; at least 1."""
    unseen_images: int
    """Pictures per unseen prompt; at least 1."""

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

    sampling_steps: int
    """Steps of the sampler without noise, from 1 to the backbone's training timesteps."""
    guidance: float
    """The guidance scale; 1: no guidance."""
    features: str
    """The reward whose `features` are the space of diversity, drift and collapse."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A base model, and the settings that suit it; one of `--list backbones`."""

    name: str
    """Whose settings these are, as cells record it."""
    model: str | Callable[[], Any]
    """A diffusers folder, a hub id, or a function that returns the pipeline."""
    budget: str
    """KIND=AMOUNT per cell where the user gives none."""
    task: str
    """The name of the task where the user gives none."""
    evaluation: EvaluationSettings
    """The same for every method."""
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
    extra: Mapping[str, float] = field(default_factory=dict)
    """Whatever else is worth a column in steps.jsonl, by name."""


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
    image_size: ClassVar[int | None] = None  # pixels; None: any size
    stand_in: ClassVar[str | None] = None
    """Name of a differentiable reward that approximates this one, for methods with a gradient."""
    recorded: ClassVar[str] = ""
    """What else its values depend on, such as the preprocessing; part of a cell's identity."""
    calibrates: ClassVar[bool] = False
    """Whether `calibrate` must be called before the first value."""

    @abstractmethod
    def __init__(self, device: Any) -> None: ...

    @abstractmethod
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """``images`` (B, 3, H, W) in [0, 1] and B prompts to rewards (B,)."""

    def calibrate(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Any]:
        """Set whatever depends on the base model. `images` are its pictures of training prompts.

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


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that a method is handed."""

    backbone: LoraSD
    """The model, with the weights that are trained."""
    reward: RewardFunction
    """(images (B, 3, H, W) in [0, 1], B prompts) to (B,): the train reward, counted, and finite:
    a value that is not counts as an average one and carries no gradient."""
    prompts: PromptSource
    """(optimizer step, count) to that many training prompts. The same step and count always give
    the same prompts. Raises UserError if count is below 1."""
    streams: Streams
    """All random numbers, named by purpose, step and global sample index."""


class Method(ABC):
    """One way of fine-tuning: it owns what one optimizer step does, and nothing else.

    ``Config`` is a frozen keyword-only dataclass whose every field has a default. ``needs`` names
    what the method asks of its surroundings: ``reward`` or ``reward_grad``.
    """

    Config: ClassVar[type]
    """Its options: a frozen keyword-only dataclass whose every field has a default."""
    needs: ClassVar[frozenset[str]]
    """`reward` or `reward_grad`: with the latter it is refused for rewards without a gradient."""

    @abstractmethod
    def __init__(self, config: Any, context: Context) -> None: ...

    @abstractmethod
    def step(self, step: int) -> StepResult:
        """Do optimizer step number ``step`` (from 0)."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything but the LoRA weights that the next step depends on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
