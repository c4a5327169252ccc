"""What the environment says of the terminal's size, before a library lays out a page by it."""

from __future__ import annotations

import os
import re

from klein_cli.errors import UsageError

_WIDEST = 10_000
_OF_TYPER = "TERMINAL_WIDTH"


def check_width() -> None:
    """Raise UsageError for a size that no page can be laid out by, or that is no number.

    Of COLUMNS and LINES text is ignored by all who read them; Typer reads its own variable as a
    number, whatever it is.
    """
    for name in ("COLUMNS", "LINES", _OF_TYPER):
        value = os.environ.get(name, "").strip()
        if re.fullmatch(r"\d+", value) and (len(value) > 9 or int(value) > _WIDEST):
            raise UsageError(f"{name} is no terminal's size: {value[:40]}", f"unset {name}")
        if name == _OF_TYPER and value and not re.fullmatch(r"\d+", value, re.ASCII):
            raise UsageError(f"{name} is no whole number: {value[:40]}", f"unset {name}")
