"""Compare reward fine-tuning methods at matched compute: ``run_benchmark.py VERB ...``.

Each verb is a file of ``benchmarks/commands/``. Without a verb it is ``run``, and ``--list`` and
``--suite NAME`` are other spellings of ``list`` and ``suite NAME``.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys

from benchmarks.api import UserError
from benchmarks.cli import renamed
from benchmarks.harness import interrupt

VERBS = (
    *(
        "run",
        "suite",
        "plan",
        "list",
        "new",
        "check",
        "status",
        "evaluate",
        "select",
        "search",
        "report",
    ),
    "reference",
)
#: Verbs that go on from where they were when they are given again.
RESUMING = ("run", "suite", "search")


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 1 a cell failed, 2 bad input, 130 interrupted."""
    verb, rest = split(renamed(arguments))
    try:
        command = importlib.import_module(f"benchmarks.commands.{verb}")
        return int(command.main(rest))
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # of several processes, one says so
            print(f"run_benchmark.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; the same command goes on from the last checkpoint" if verb in RESUMING else ""
        print(f"interrupted{hint}", file=sys.stderr)
        return 130


def split(arguments: list[str]) -> tuple[str, list[str]]:
    """The verb and its arguments."""
    if arguments and arguments[0] in VERBS:
        return arguments[0], arguments[1:]
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        before, after = arguments[:i], arguments[i + 1 :]
        if name == "--suite":
            words = [value] if equals else after[:1]
            return "suite", [*words, *before, *(after if equals else after[1:])]
        if argument == "--list":
            kinds = list(itertools.takewhile(lambda word: not word.startswith("-"), after))
            return "list", [*kinds, *before, *after[len(kinds) :]]
    return "run", arguments


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    interrupt.listen()
    sys.exit(main(sys.argv[1:]))
