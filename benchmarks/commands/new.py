"""``new method NAME [--dir DIR]``: write a commented method that already runs."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.api import UserError

TEMPLATE = Path(__file__).parents[2] / "methods" / "_template.py"


def main(arguments: list[str]) -> int:
    """Write the template under a new name; UserError if it cannot be."""
    usage = "new: write `new method NAME`, with a NAME like my_idea, and optionally `--dir DIR`"
    if (
        len(arguments) not in (2, 4)
        or arguments[0] != "method"
        or arguments[2:3] not in ([], ["--dir"])
    ):
        raise UserError(usage)
    name, folder = arguments[1], Path(arguments[3] if len(arguments) == 4 else ".")
    if not name.isidentifier():
        raise UserError(usage)
    path = folder / f"{name}.py"
    if path.exists():
        raise UserError(f"{path} exists already; choose another name or move it away")
    text = TEMPLATE.read_text("utf-8")
    words = {"NAME": name, "CLASS": name.title().replace("_", ""), "PATH": str(path)}
    for word, value in words.items():
        text = re.sub(rf"\b{word}\b", value, text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    print(f"{path} runs as it is: python run_benchmark.py check {path}")
    return 0
