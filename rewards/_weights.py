"""Where the weights of model rewards come from, and how they are read.

Looked for, in this order: the folder named by ``ALIGNPROP_BENCH_WEIGHTS``, the hub's cache, and,
only if ``ALIGNPROP_BENCH_DOWNLOAD=1``, the hub. Nothing that is read can run code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from rewards import UserError, content, torch

if TYPE_CHECKING:
    from torch import Tensor

FOLDER, DOWNLOAD = "ALIGNPROP_BENCH_WEIGHTS", "ALIGNPROP_BENCH_DOWNLOAD"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Hub:
    """Files of a hub repository, and their size together in MB (1e6 bytes)."""

    repository: str
    files: tuple[str, ...]
    megabytes: float

    def folder(self, reward: str) -> Path:
        """A folder that holds the files. Raises UserError that says how to get them.

        In the user's own folder, the files may lie directly or under the repository's last name.
        """
        if own := self.own():
            return own
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        wanted = os.environ.get(DOWNLOAD) == "1"
        reason = ""
        try:
            files = list(self.files)
            here = snapshot_download(
                self.repository, allow_patterns=files, local_files_only=not wanted
            )
            if self._in(Path(here)):
                return Path(here)
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            reason = f" (tried to download: {str(error).splitlines()[0]})" if wanted else ""
        raise UserError(
            f"reward {reward!r} needs {', '.join(self.files)} of {self.repository} "
            f"({self.megabytes:,.0f} MB): put them into a folder and name it in {FOLDER}, or set "
            f"{DOWNLOAD}=1 to download them into {constants.HF_HUB_CACHE}{reason}"
        )

    def own(self) -> Path | None:
        """The user's own folder that holds the files, if there is one."""
        folder = Path(os.environ.get(FOLDER, "/nonexistent"))
        places = (folder / self.repository.split("/")[1], folder)
        return next((place for place in places if self._in(place)), None)

    def _in(self, place: Path) -> bool:
        return all((place / name).is_file() for name in self.files)


def own_weights(hubs: Iterable[Hub]) -> str:
    """A digest of those files that are the user's own, in the folder of ``FOLDER``; or ''.

    Those of the hub do not change.
    """
    own = [(hub, folder) for hub in hubs if (folder := hub.own())]
    return " ".join(content.files([folder / f for f in hub.files], folder) for hub, folder in own)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what a damaged or dangerous file at ``path`` raises into a UserError."""
    from safetensors import SafetensorError

    try:
        yield
    except UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than tensors (or is damaged), and loading that could run code; "
            "nothing was run. Get the published file again"
        ) from error
    except (RuntimeError, EOFError, KeyError, OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(f"{path}: damaged or truncated ({reason[0]}); get it again") from error


def read_pickle(path: Path) -> Any:
    """A ``torch.save`` file that holds tensors and containers only; anything else is refused."""
    with readable(path):
        return torch.load(path, map_location="cpu", weights_only=True)


def build(kind: Any, config: Any, state: Mapping[str, Tensor], path: Path, **options: Any) -> Any:
    """A transformers model of class ``kind`` with the weights ``state`` read from ``path``.

    It is frozen, in single precision and evaluation mode. Raises UserError unless every weight
    is there, is used and has the right shape.
    """
    with torch.device("meta"):
        empty = kind(config, **options)
    shapes = {name: value.shape for name, value in empty.state_dict().items()}
    exact(state, shapes, path)
    model = kind.from_pretrained(
        None, config=config, state_dict=dict(state), dtype=torch.float32, **options
    )
    return model.eval().requires_grad_(False)


def exact(state: Mapping[str, Tensor], shapes: Mapping[str, Any], path: Path) -> None:
    """Raise UserError unless ``state`` has exactly these names and shapes."""
    for problem, names in (
        ("lacks", shapes.keys() - state.keys()),
        ("has an unknown", state.keys() - shapes.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path}: {problem} weight {min(names)!r}{more}; is it another model?")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise UserError(
                f"{path}: weight {name!r} has shape {tuple(state[name].shape)}, not {tuple(shape)}"
            )


def rename(state: Mapping[str, Tensor], rules: Mapping[str, str]) -> dict[str, Tensor]:
    """``state`` with each name changed by every rule, a regular expression and its replacement."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules.items():
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed
