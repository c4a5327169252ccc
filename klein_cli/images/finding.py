"""Images that a record names by digest -> where they are, in folders that the user names."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from klein_cli.images.files import MAX_FILE_BYTES

EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif"),
    *(".heic", ".heif", ".avif", ".mpo"),
)
"""How the names of files end that are looked into."""


def find_images(
    wanted: Mapping[str, str], places: Iterable[Path], *, below: bool = False
) -> dict[str, Path]:
    """The files of digests, of `wanted` digest -> bare name: as many as there are.

    Looks at regular files of bounded size that are not hidden, in each of `places` that is a folder
    (and `below` it), or at the file itself; first at those of the names that are told, then at all
    images. Nothing is decoded, and what cannot be read is passed by.
    """
    names = set(wanted.values())
    candidates = dict.fromkeys(path for place in places for path in _files(place, below=below))
    ordered = sorted(
        (path for path in candidates if path.name in names or _is_named_image(path)),
        key=lambda path: path.name not in names,
    )
    found: dict[str, Path] = {}
    for path in ordered:
        if len(found) == len(wanted):
            break
        digest = digest_of(path)
        if digest is not None and digest in wanted:
            found.setdefault(digest, path)
    return found


def _files(place: Path, *, below: bool) -> Iterator[Path]:
    if not os.path.isdir(place):
        yield place
        return
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if below and not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _is_named_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def digest_of(path: Path) -> str | None:
    """The SHA-256 of a regular file of bounded size; None for anything else."""
    with suppress(OSError, ValueError):  # ValueError for a name with a zero in it
        # A pipe or a device would never end.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            facts = os.fstat(handle)
            if stat.S_ISREG(facts.st_mode) and facts.st_size <= MAX_FILE_BYTES:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return None
