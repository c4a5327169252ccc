"""Paths as a person writes them, and addresses (s3://bucket/..., https://...) in their place.

A path library makes a folder called `s3:` of an address, and nobody finds the images again.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from klein_cli.errors import UsageError

# Two letters at least: one is a drive of Windows. A Path has one slash left of the two.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.IGNORECASE | re.DOTALL)
_OF_THE_HUB = re.compile(
    r"(?:hf:/+|https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/)([\w.-]+/[\w.-]+?)(?:/tree/main)?/?"
)


def check_path(option: str, path: str | Path) -> None:
    """Raise UsageError when `path`, given for `option`, is an address."""
    found = _ADDRESS.match(str(path))
    if found is None:
        return
    scheme, rest = found[1].lower(), found[2]
    todo = f"give a path on this machine: klein reads and writes nothing at {scheme}://"
    if scheme == "file":
        todo = f"give the path alone: /{rest.lstrip('/')}"
    raise UsageError(f"{option} {scheme}://{rest} is an address, not a path", todo)


def hub_id(model: str) -> str | None:
    """OWNER/NAME where `model` is the address of a repository on the hub, else None."""
    found = _OF_THE_HUB.fullmatch(model)
    return found[1] if found else None


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
