"""AlignPropTrainer and DDPOTrainer of TRL 0.23.1, the last to have both, on our pipeline."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from benchmarks.api import UserError

Score = Callable[[Tensor, Sequence[str]], Tensor]


class Trainers:
    """Both trainers on one pipeline, which becomes theirs; the same batch, steps and guidance."""

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        score: Score,
        prompts: Sequence[str],
        *,
        batch: int,
        steps: int,
        guidance: float,
        precision: str,
    ) -> None:
        from accelerate.state import AcceleratorState

        sd, trl = _modules()
        AcceleratorState._reset_state()  # which fixes the precision of a process once and for all
        self.steps = steps

        class OnHand(sd.DefaultDDPOStableDiffusionPipeline):  # type: ignore[misc, name-defined]
            """TRL's pipeline, which is otherwise read from a folder."""

            def __init__(self) -> None:
                self.sd_pipeline, self.use_lora = pipeline, True
                pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
                for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
                    module.requires_grad_(False)

            def get_trainable_layers(self) -> Any:
                """The second trainer finds the adapter of the first."""
                there = getattr(pipeline.unet, "peft_config", None)
                return pipeline.unet if there else super().get_trainable_layers()

        shared, endless = OnHand(), itertools.cycle(prompts)
        common = {
            "sample_num_steps": steps,
            "sample_guidance_scale": guidance,
            "train_batch_size": batch,
            "mixed_precision": "no" if precision == "fp32" else precision,
        }
        rounds = {"sample_batch_size": batch, "sample_num_batches_per_epoch": 1}

        def trainer(name: str, **settings: Any) -> Any:
            config = getattr(trl, f"{name}Config")(**common, **settings)
            made = getattr(trl, f"{name}Trainer")(
                config,
                lambda images, texts, _: (score(images, texts), {}),
                lambda: (next(endless), {}),
                shared,
            )
            made.sd_pipeline.set_progress_bar_config(disable=True)
            return made

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._alignprop = trainer("AlignProp", truncated_backprop_rand=False)
            self._ddpo = trainer("DDPO", **rounds)

    def alignprop(self, k: int) -> None:
        """One optimizer step through the last ``k`` sampling steps."""
        self._alignprop.config.truncated_backprop_timestep = self.steps - k
        self._step(self._alignprop, 1)

    def ddpo(self) -> None:
        """One epoch: a round of sampling and one update."""
        self._step(self._ddpo, self.steps)

    def _step(self, trainer: Any, accumulated: int) -> None:
        # Both trainers share this number, which accelerate keeps once per process.
        trainer.accelerator.gradient_accumulation_steps = accumulated
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            trainer.step(0, 0)


def _modules() -> tuple[Any, Any]:
    try:
        import trl
        from trl.models import modeling_sd_base

        getattr(trl, "AlignPropTrainer")  # noqa: B009 - TRL imports it when it is asked for
    except (ImportError, AttributeError, RuntimeError) as error:
        raise UserError(f"needs TRL 0.23.1: pip install -e '.[test]' ({error})") from error
    logging.getLogger("trl").setLevel(logging.ERROR)
    return modeling_sd_base, trl
