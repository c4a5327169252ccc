"""A path as a person writes it."""

from __future__ import annotations

import os
from pathlib import Path

from klein_cli.errors import UsageError


def user_path(text: str | Path) -> Path:
    """The path that is meant: a ~ in front is a home folder, as for a shell.

    Where nobody has the name behind it, it stays as it is, as for a shell, and is not found.
    """
    return Path(os.path.expanduser(text))


def askable(path: Path) -> Path:
    """A path of which it can be told whether something is there, and in it if it is a folder.

    Raises UsageError where the machine will not say: for a name that is too long, or in a folder
    that is another user's.
    """
    try:
        if path.is_dir():
            with os.scandir(path):
                (path / ".").stat()
    except OSError as error:
        shown = str(path) if len(str(path)) < 200 else f"{str(path)[:40]}..."
        raise UsageError(
            f"{shown} cannot be opened: {error.strerror}", "give a path that you may read"
        ) from None
    return path
