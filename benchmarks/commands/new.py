"""Write a commented method that already runs."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks import registry
from benchmarks.api import UserError
from benchmarks.cli import cli

TEMPLATE = registry.ROOT / "methods" / "_template.py"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to write, and where."""

    kind: tyro.conf.Positional[Literal["method"]]
    """The only thing there is a template of."""
    name: tyro.conf.Positional[str]
    """Its name, like my_idea."""
    dir: Path = Path(".")
    """The directory of the new file."""


def main(arguments: list[str]) -> int:
    """Write the template under a new name; UserError if it cannot be."""
    usage = "new: write `new method NAME`, with a NAME like my_idea, and optionally `--dir DIR`"
    try:
        options: Options = cli(
            Options, args=arguments, prog="run_benchmark.py new", description=__doc__
        )
    except UserError as error:
        raise UserError(usage) from error
    if not options.name.isidentifier() or keyword.iskeyword(options.name):
        raise UserError(usage)
    path = options.dir / f"{options.name}.py"
    text = TEMPLATE.read_text("utf-8")
    title = options.name.title().replace("_", "")
    words = {"NAME": options.name, "CLASS": title, "PATH": str(path)}
    for word, value in words.items():
        text = re.sub(rf"\b{word}\b", value, text)
    try:
        options.dir.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if options.dir.is_dir() and isinstance(error, FileExistsError):
            raise UserError(
                f"{path} exists already; choose another name or move it away"
            ) from error
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    print(f"{path} runs as it is: python run_benchmark.py check {path}")
    return 0
