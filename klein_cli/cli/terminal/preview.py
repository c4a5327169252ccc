"""Images in the terminal: as the terminal can show them, and not at all where there is none.

textual-image knows the ways (kitty's protocol; sixel, which iTerm2 speaks too; half-blocks). It
asks the terminal what it can do while it is imported, by an escape sequence that the terminal
answers on standard input. That is why it is imported here alone, before the work starts and after
it is sure that there is somebody to answer.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LINES_LEFT = 4
"""Of the window, for what stands around an image."""

_TALLEST = 24


class Preview:
    """Shows images on standard output, a terminal. Use `preview`, which may return None."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stdout, highlight=False)
        self._kind: Any = _kind(in_colour=not self._console.no_color)

    def show(self, path: Path) -> None:
        """Print an image. Never raises for one that cannot be shown: the file is what counts."""
        _drop_late_answers()
        height = max(1, min(self._console.height - _LINES_LEFT, _TALLEST))
        # Whatever goes wrong here, in a library or a terminal, must not end a run of thousands.
        with contextlib.suppress(Exception):
            self._console.print(self._kind(path, "auto", "auto"), height=height)


def preview(*, wanted: bool) -> Preview | None:
    """A Preview if it is `wanted` and standard output is a terminal that a person looks at."""
    if not wanted or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return None
    return None if _in_background() else Preview()


def _kind(*, in_colour: bool) -> type:
    """The best of the library's ways for this terminal."""
    with _without_queries() if not sys.stdin.isatty() else contextlib.nullcontext():
        from textual_image.renderable import Image, UnicodeImage
    # Half-blocks without colours are bars; shades of characters still show something.
    return Image if in_colour else UnicodeImage


@contextlib.contextmanager
def _without_queries() -> Iterator[None]:
    """With standard input elsewhere no answer can come: the library then takes half-blocks."""
    kept = sys.__stdin__
    vars(sys)["__stdin__"] = None
    try:
        yield
    finally:
        vars(sys)["__stdin__"] = kept


def _in_background() -> bool:
    """Whether this job is not the one that the terminal belongs to: asking would stop it."""
    try:
        return os.tcgetpgrp(sys.stdout.fileno()) != os.getpgrp()
    except (AttributeError, OSError):
        return False


def _drop_late_answers() -> None:
    """Over a slow line the terminal answers when nobody waits any more; spare the shell that."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import termios

        if sys.stdin.isatty():
            with contextlib.suppress(termios.error):
                termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
