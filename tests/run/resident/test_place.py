"""Where an engine listens: in a folder of its owner alone, and never where another does."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from klein_cli.errors import UsageError
from klein_cli.run.resident.place import connected, listening, socket_path


@pytest.fixture
def folder() -> Iterator[Path]:
    found = Path(tempfile.mkdtemp(prefix="klein-"))  # 0700, and short
    yield found
    shutil.rmtree(found)


def test_the_socket_is_the_owners_alone_and_gone_at_the_end(folder: Path) -> None:
    """uvicorn opens its own to everybody: mode 0666."""
    path = folder / "new" / "s"
    with listening(path):
        assert path.lstat().st_mode & 0o777 == 0o600
        assert path.parent.lstat().st_mode & 0o777 == 0o700
        theirs = connected(path)
        assert theirs is not None
        theirs.close()
    assert not path.exists()
    assert connected(path) is None


def test_a_socket_that_a_dead_engine_left_is_replaced(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    with listening(path):
        theirs = connected(path)
        assert theirs is not None
        theirs.close()


def test_a_second_engine_is_refused_and_the_first_goes_on(folder: Path) -> None:
    path = folder / "s"
    with listening(path):
        with pytest.raises(UsageError, match="an engine is running"), listening(path):
            pass
        theirs = connected(path)
        assert theirs is not None
        theirs.close()


def test_the_end_leaves_the_socket_of_another_engine_alone(folder: Path) -> None:
    path = folder / "s"
    with listening(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.exists()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_a_folder_that_others_may_enter_is_refused(mode: int, folder: Path) -> None:
    (folder / "open").mkdir()
    (folder / "open").chmod(mode)
    with pytest.raises(UsageError, match="open to other users"), listening(folder / "open" / "s"):
        pass


def test_a_link_in_the_folders_place_is_refused(folder: Path) -> None:
    """In /tmp, whoever comes first makes it."""
    (folder / "real").mkdir(mode=0o700)
    (folder / "link").symlink_to(folder / "real")
    with pytest.raises(UsageError, match="not a folder of yours"), listening(folder / "link" / "s"):
        pass


def test_a_path_that_no_socket_can_have_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="too long"), listening(folder / ("x" * 100)):
        pass


def test_the_place_is_named_by_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.delenv("KLEIN_HOST", raising=False)
    assert socket_path() == Path("/run/user/7/klein/engine.sock")
    monkeypatch.setenv("KLEIN_HOST", "/a/b")
    assert socket_path() == Path("/a/b")
    monkeypatch.setenv("KLEIN_HOST", "http://host:80")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert socket_path().parent.parent == Path("/tmp")
