"""The page cache: what a run after a reboot would not find in it."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

_PAGE = 4096


def environment() -> list[Path]:
    """The folders of the installed packages, torch's among them."""
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return sorted({Path(torch.__file__).parents[1], *map(Path, installed)})


def drop_cached(folders: Iterable[Path]) -> bool:
    """Let the files in `folders` leave the page cache; False where they do not.

    Files that a process has mapped stay: of those that this one runs on, the libraries. Needs no
    rights, and nobody else's files are touched.
    """
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "preadv"):
        return False
    largest, size = None, 0
    for path in _files(folders):
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            # Only pages that are on disk can go.
            os.fdatasync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            if os.fstat(handle).st_size > size:
                largest, size = path, os.fstat(handle).st_size
        except OSError:
            return False
        finally:
            os.close(handle)
    return largest is not None and not _remembered(largest, size)


def _remembered(path: Path, size: int) -> bool:
    """Whether the middle of a file is in the page cache, or the system does not tell."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.preadv(handle, [bytearray(_PAGE)], size // 2 // _PAGE * _PAGE, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        os.close(handle)
    return True


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in folder.rglob("*") if path.is_file())
