"""The command line of every command: tyro's, with errors as one line."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

import tyro

from benchmarks.api import UserError


def cli(form: Any, **options: Any) -> Any:
    """``tyro.cli``, with its framed and titled errors as one line. Raises UserError."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            return tyro.cli(form, **options)
        except SystemExit as stop:
            if not stop.code:  # help
                raise
    raise UserError(" ".join(re.sub("╭.*╮|[─-╿]", " ", errors.getvalue()).split()))
