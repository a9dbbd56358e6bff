"""Prompts of more tokens than a text encoder reads: said once, and recorded."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from benchmarks.distributed import process

#: So many lines at most about the prompts that one reader cuts.
SAID = 5
_said: set[tuple[str, str]] = set()


class Reader(Protocol):
    """A backbone or a reward."""

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        """The prompts that it does not read to their end, and what it reads of them."""


def cut(tokenizer: Any, prompts: Sequence[str], length: int) -> dict[str, str]:
    """The prompts of more than ``length`` tokens, and what is left of them."""
    found: dict[str, str] = {}
    for prompt in dict.fromkeys(prompts):
        if len(tokenizer(prompt, truncation=False, verbose=False).input_ids) > length:
            kept = tokenizer(prompt, truncation=True, max_length=length).input_ids
            found[prompt] = tokenizer.decode(kept, skip_special_tokens=True)
    return found


def warned(readers: Mapping[str, Reader], prompts: Sequence[str]) -> dict[str, dict[str, str]]:
    """What each reader cuts, for the record; a line on stderr for each prompt, once."""
    found = {name: left for name, reader in readers.items() if (left := reader.cut(prompts))}
    for name, left in found.items():
        new = [prompt for prompt in left if (name, prompt) not in _said]
        _said.update((name, prompt) for prompt in new)
        lines = [_line(name, prompt, left, prompts) for prompt in new[:SAID]]
        lines += [f"and {len(new) - SAID} prompts more that {name} cuts"] * (len(new) > SAID)
        if process() == 0:
            print("\n".join(lines), end="\n" * bool(lines), file=sys.stderr, flush=True)
    return found


def _line(name: str, prompt: str, left: Mapping[str, str], prompts: Sequence[str]) -> str:
    same = [
        other
        for other in dict.fromkeys(prompts)
        if other != prompt and left.get(other, " ".join(other.lower().split())) == left[prompt]
    ]
    line = f"prompt {prompt!r} is too long: {name} reads only {left[prompt]!r}"
    return line + (f", as it does of {', '.join(map(repr, same))}" if same else "")
