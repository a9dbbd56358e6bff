"""Compare reward fine-tuning methods at matched compute: ``run_benchmark.py VERB ...``.

Each verb is a file of ``benchmarks/commands/``. Without a verb it is ``run``, and ``--list`` and
``--suite NAME`` are other spellings of ``list`` and ``suite NAME``.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from contextlib import suppress

from benchmarks.api import UserError
from benchmarks.cli import Helped, renamed
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
        code = int(command.main(rest))
        sys.stdout.flush()
        return code
    except UserError as error:
        return said(str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return said(f"{place}{error.strerror or error}; what was recorded before is kept")
    except SystemExit as stop:
        if isinstance(stop, Helped):
            raise
        return said(f"a plugin, method or reward called sys.exit({stop.code!r})")
    except KeyboardInterrupt:
        hint = "; the same command goes on from the last checkpoint" if verb in RESUMING else ""
        print(f"interrupted{hint}", file=sys.stderr)
        return 130


def said(text: str) -> int:
    """Print one line; of several processes, one does. The exit code of bad input."""
    if os.environ.get("RANK", "0") == "0":
        print(f"run_benchmark.py: {text}", file=sys.stderr)
    return 2


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
    code = main(sys.argv[1:])
    with suppress(OSError):  # a full disk, which was said; else Python tries to write once more
        sys.stdout.close()
    sys.exit(code)
