"""Where the engine of this user listens: a socket of its own in a folder that is nobody else's.

KLEIN_HOST names it; otherwise it is $XDG_RUNTIME_DIR/klein/engine.sock, or the same in
/tmp/klein-UID where there is no such folder, as in containers and under cron.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from klein_cli.errors import UsageError

VARIABLE = "KLEIN_HOST"
_NAME = "engine.sock"
_LONGEST = 103
"""Bytes of a socket's path: 108 on Linux, 104 on a Mac, the end included."""
_PATIENCE = 0.25
"""Seconds for a connection on this machine: an engine that is busy takes it at once."""


def socket_path() -> Path:
    """Where this user's engine is, unless an option says otherwise."""
    named = os.environ.get(VARIABLE)
    if named and "://" not in named:
        return Path(named)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) / "klein" if runtime else Path(f"/tmp/klein-{os.getuid()}")
    return folder / _NAME


def check_folder(folder: Path) -> None:
    """Raise UsageError unless the folder is this user's, and closed to all others."""
    try:
        found = folder.lstat()
    except OSError as error:
        raise UsageError(
            f"cannot use {folder}: {error.strerror}", "give another --socket"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UsageError(
            f"{folder} is not a folder of yours", "remove it, or give another --socket"
        )
    if found.st_mode & 0o077:
        raise UsageError(
            f"{folder} is open to other users", f"chmod 700 {folder}, or give another --socket"
        )


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket that listens at `path`, for this user alone; it is gone with the context.

    One that was left there by an engine which is dead is replaced. Raises UsageError when an engine
    is alive there, or when the folder will not do.
    """
    _check_length(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_folder(path.parent)
    with _locked(path):
        if _is_alive(path):
            raise UsageError(
                f"an engine is running at {path}", "use it, or end it first: klein stop"
            )
        path.unlink(missing_ok=True)
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            ours.bind(str(path))
        finally:
            os.umask(before)
        ours.listen(128)
        inode = path.lstat().st_ino
    with ours:
        try:
            yield ours
        finally:
            with suppress(OSError), _locked(path):
                # Another engine may have taken the place since.
                if path.lstat().st_ino == inode:
                    path.unlink()


def connected(path: Path) -> socket.socket | None:
    """A connection to the engine there; None where there is none, or it is not this user's."""
    theirs = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        theirs.settimeout(_PATIENCE)
        theirs.connect(str(path))
        if _peer(theirs) == os.getuid():
            return theirs
    except OSError:
        pass
    theirs.close()
    return None


def _check_length(path: Path) -> None:
    if len(os.fsencode(path)) > _LONGEST:
        raise UsageError(
            f"{path} is too long for a socket's path", f"use at most {_LONGEST} bytes: --socket"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Nobody else starts or ends an engine there meanwhile."""
    handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PATIENCE)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return path.is_socket()
        return True


def _peer(connection: socket.socket) -> int:
    """The user on the other side, where the system tells; otherwise the folder alone protects."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getuid()
    layout = struct.Struct("3i")
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    _, user, _ = layout.unpack(said)
    return int(user)
