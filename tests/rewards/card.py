"""The embedded model's pictures: the sheet that goes with its model card, undone."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks import emoji
from benchmarks.emoji.quality import GRID_PROMPTS

PROMPTS = [prompt for prompt in GRID_PROMPTS for _ in range(2)]


def pictures() -> Tensor:
    """(48, 3, 64, 64) in [0, 1], those of ``PROMPTS``."""
    sheet = Image.open(Path(emoji.__file__).parent / "quality_grid.png").convert("RGB").reduce(2)
    pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8) / 255
    return pixels.view(4, 64, 12, 64, 3).permute(0, 2, 4, 1, 3).reshape(48, 3, 64, 64)
