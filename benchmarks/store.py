"""Run directories: append-only JSON lines, PNG pictures, safetensors weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor


class Cell:
    """The directory of one method x task x seed x config, named by a hash of its content."""

    def __init__(self, out: Path, description: Mapping[str, Any]) -> None:
        self.description = description
        text = json.dumps(description, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        names = [str(description[k]) for k in ("method", "reward")]
        self.path = out / f"{'-'.join(names)}-seed{description['seed']}-{digest}"

    @property
    def done(self) -> bool:
        """Whether the cell has finished."""
        return (self.path / "done").exists()

    def begin(self) -> None:
        """Clear what an unfinished run left and write the description."""
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        write_json(self.path / "cell.json", self.description)

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add a line to ``name``.jsonl."""
        with (self.path / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save_images(self, split: str, step: int, images: Tensor) -> None:
        """Write (B, 3, H, W) in [0, 1] as numbered PNG files."""
        folder = self.path / "images" / split / f"{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(images):
            to_pil(picture).save(folder / f"{i:03d}.png")

    def finish(self) -> None:
        """Mark the cell as done."""
        (self.path / "done").touch()

    def fail(self, error: BaseException) -> None:
        """Leave a record of why the cell failed."""
        write_json(self.path / "failed.json", {"error": str(error), "type": type(error).__name__})


def write_json(path: Path, value: Any) -> None:
    """Write atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] to an 8-bit picture, rounding like diffusers' image processor."""
    array = (image.permute(1, 2, 0).cpu().float() * 255).round().byte().numpy()
    return Image.fromarray(array)
