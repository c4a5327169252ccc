"""Files leave the page cache, or it is said that they did not."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
import torch

from klein_cli.bench.page_cache import drop_cached, environment

SIZE = 1 << 22


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "weights").write_bytes(bytes(SIZE))
    (tmp_path / "small").write_bytes(b"small")
    (tmp_path / "link").symlink_to("nowhere")
    return tmp_path


def can_forget(path: Path) -> bool:
    """Whether a file can leave the page cache here, tried with one: not on every file system."""
    path.write_bytes(bytes(SIZE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(file.fileno(), [bytearray(16)], SIZE // 2, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def test_files_are_forgotten(folder: Path, tmp_path: Path) -> None:
    if not can_forget(tmp_path / "probe"):
        pytest.skip("this file system keeps its pages")
    assert drop_cached([folder])
    assert (folder / "deep" / "weights").read_bytes() == bytes(SIZE)
    assert drop_cached([folder])


def test_what_is_mapped_stays_and_that_is_said(folder: Path) -> None:
    """Or a run with a warm page cache would be sold as one with a cold one."""
    with (
        (folder / "deep" / "weights").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        assert sum(mapped[at] for at in range(0, SIZE, mmap.PAGESIZE)) == 0
        assert not drop_cached([folder])


def test_nothing_to_forget(tmp_path: Path) -> None:
    assert not drop_cached([tmp_path, tmp_path / "nowhere"])


def test_the_environment_holds_torch() -> None:
    assert any(Path(torch.__file__).is_relative_to(folder) for folder in environment())
