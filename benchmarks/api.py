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
    train: tuple[str, ...]
    unseen: tuple[str, ...]
    held_out: tuple[str, ...]
    train_every: int
    train_images: int
    unseen_images: int

    def evaluation_prompts(self) -> dict[str, list[str]]:
        """Split -> one prompt per picture."""
        chosen = self.train[:: self.train_every]
        return {
            "train": [p for p in chosen for _ in range(self.train_images)],
            "unseen": [p for p in self.unseen for _ in range(self.unseen_images)],
        }


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A Stable Diffusion, and the settings that suit it.

    ``model`` is a diffusers folder, a hub id, or a function that returns a
    ``StableDiffusionPipeline``. ``preset`` has ``budget``, ``task``, ``evaluation`` and a table per
    method; ``name`` is whose preset it is.
    """

    name: str
    model: str | Callable[[], Any]
    preset: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step did; the harness records it."""

    reward: float  # mean train reward of the images this step saw
    loss: float
    grad_norm: float  # before clipping
    informative: bool = True  # False: nothing in it depends on the rewards, which are all alike
    extra: Mapping[str, float] = field(default_factory=dict)


class Reward(ABC):
    """Scores pictures; higher is better.

    Subclasses set the class variables and implement ``__call__``. A reward that is not
    ``differentiable`` is called without gradient and refused by methods that need one.
    """

    unit: ClassVar[str]
    reference: ClassVar[str]
    differentiable: ClassVar[bool]
    image_size: ClassVar[int | None] = None  # pixels; None: any size
    stand_in: ClassVar[str | None] = None  # a differentiable reward that approximates this one
    recorded: ClassVar[str] = ""  # what else its values depend on, such as the preprocessing
    calibrates: ClassVar[bool] = False  # whether ``calibrate`` must be called
    standardised: ClassVar[bool] = False  # whether it is published in deviations from a mean

    @abstractmethod
    def __init__(self, device: Any) -> None: ...

    @abstractmethod
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """``images`` (B, 3, H, W) in [0, 1] and B prompts to rewards (B,)."""

    def calibrate(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Any]:
        """Fix what depends on the base model, of whose training prompts these are pictures.

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
class Scale:
    """The train reward of the base model's pictures of training prompts, in the reward's unit.

    It never changes during a run. A reward that is ``standardised`` has mean 0 and deviation 1.
    """

    mean: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that a method is handed."""

    backbone: LoraSD
    reward: RewardFunction
    prompts: PromptSource
    streams: Streams
    scale: Callable[[], Scale]  # measured at the first call, which belongs into ``__init__``


class Method(ABC):
    """One way of fine-tuning: it owns what one optimizer step does, and nothing else.

    ``Config`` is a frozen keyword-only dataclass whose every field has a default. ``needs`` names
    what the method asks of its surroundings: ``reward`` or ``reward_grad``.
    """

    Config: ClassVar[type]
    needs: ClassVar[frozenset[str]]

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
