"""What several commands do to words before they print them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def printable(value: object, *, keep: str = "") -> str:
    """Words from a file or an error as they can be shown: nothing in them moves the cursor."""
    return "".join(
        char if char.isprintable() or char in keep else repr(char)[1:-1] for char in str(value)
    )


def to_stderr(text: str) -> None:
    """Lines for a person. Nobody may be there to read them, and the work goes on."""
    with suppress(OSError):
        print(printable(text, keep="\n"), file=sys.stderr, flush=True)  # noqa: T201


def counted(number: int, noun: str) -> str:
    """So many of them: 1 step, 2 steps."""
    return f"{number} {noun}{'s' * (number != 1)}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lines of columns as wide as their widest cell, the last one as it comes."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def home_as_tilde(path: Path | str) -> str:
    """A path, or text with paths in it, with the home folder written as ~."""
    home = os.path.expanduser("~")
    return str(path).replace(home, "~") if len(home) > 1 else str(path)


def gigabytes(size: int) -> str:
    """Bytes as a person says them: 16.0 GB, 168 MB, 20 kB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} GB" if name == "GB" else f"{size // unit} {name}"
    return f"{size} bytes"
