"""A path as a person writes it."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(text: str | Path) -> Path:
    """The path that is meant: a ~ in front is a home folder, as for a shell.

    Where nobody has the name behind it, it stays as it is, as for a shell, and is not found.
    """
    return Path(os.path.expanduser(text))
