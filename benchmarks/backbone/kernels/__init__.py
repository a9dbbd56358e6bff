"""The same mathematics as PyTorch's, peft's and diffusers' modules, in less time or memory.

``lora``, ``attention`` and ``residual`` save time everywhere, ``convolution`` memory everywhere and
time on CPUs, ``linear`` and ``normalisation`` time on CPUs. What each gains:
``python -m benchmarks.speed --levers``.
"""

from __future__ import annotations

from diffusers.models.attention_processor import Attention as AttentionLayer
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from benchmarks.backbone.kernels.attention import Attention
from benchmarks.backbone.kernels.convolution import Conv2d, Upsample
from benchmarks.backbone.kernels.linear import Linear
from benchmarks.backbone.kernels.lora import LoraLinear
from benchmarks.backbone.kernels.normalisation import GroupNorm
from benchmarks.backbone.kernels.reference import reference_operators
from benchmarks.backbone.kernels.residual import ResnetBlock
from benchmarks.backbone.kernels.trajectory import cached_per_trajectory, one_trajectory

__all__ = [
    "Attention",
    "Conv2d",
    "GroupNorm",
    "Linear",
    "LoraLinear",
    "ResnetBlock",
    "Upsample",
    "cached_per_trajectory",
    "install",
    "one_trajectory",
    "reference_operators",
]


def install(*models: nn.Module, cpu: bool) -> None:
    """Let the modules of models work by these classes; some of them only if they are on a CPU.

    ``LoraLinear`` is not among them: peft makes it.
    """
    for module in (module for model in models for module in model.modules()):
        if type(module) is nn.Conv2d:
            module.__class__ = Conv2d
        elif type(module) is AttentionLayer and Attention.suits(module):
            module.__class__ = Attention
        elif type(module) is ResnetBlock2D and ResnetBlock.suits(module):
            module.__class__ = ResnetBlock
        elif cpu and type(module) is nn.Linear:
            module.__class__ = Linear
        elif cpu and type(module) is nn.GroupNorm:
            module.__class__ = GroupNorm
        elif cpu and type(module) is Upsample2D and Upsample.suits(module):
            module.__class__ = Upsample
