"""One file from the hub into its cache: gone on with where it broke off, and checked.

huggingface_hub (since 1.18) receives a file under a name of its own for each try and deletes it
when the try ends, so that a connection lost at 7 of 8 GB costs 7 GB. Here the part received lies
beside the place of the whole one, as DIGEST.incomplete, until its hash is right; whoever comes
next, also another process, goes on with it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from klein_cli.checkpoints.folder import digest
from klein_cli.checkpoints.hub.cache import lock_folder, repository_folder
from klein_cli.checkpoints.hub.errors import is_worth_another_try, status_of
from klein_cli.checkpoints.hub.repository import HubFile, is_git_digest
from klein_cli.errors import ModelError

_TRIES = 8
"""Failures in a row, without a byte in between, until the hub counts as away: two minutes."""

_LONGEST_WAIT = 30.0
_PATIENCE = 1.0
_RANGE_NOT_SATISFIABLE = 416
_PARTIAL_CONTENT = 206


def has_size(path: Path, size: int) -> bool:
    """Whether there is a file at `path`, of `size` bytes."""
    return path.is_file() and path.stat().st_size == size


class StoppedError(Exception):
    """Another file failed or the user interrupted: this one need not go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Files of one commit on their way. `moved` hears of bytes, fewer than none when some are lost.

    `waiting` hears why nothing moves. Both are called from several threads.
    """

    repo: str
    commit: str
    moved: Callable[[int], None]
    waiting: Callable[[str], None]
    stop: threading.Event

    def blob(self, file: HubFile) -> Path:
        """Where the file lies in the cache once it is whole."""
        return repository_folder(self.repo) / "blobs" / file.digest

    def partial(self, file: HubFile) -> Path:
        """Where its beginning lies until then."""
        return self.blob(file).with_name(f"{file.digest}.incomplete")

    def held(self, file: HubFile) -> int:
        """Bytes of the file that need not be received again."""
        if has_size(self.blob(file), file.size):
            return file.size
        return min(self._size(file), file.size)

    def fetch(self, file: HubFile) -> None:
        """Bring the rest of a file. Raises ModelError when what comes is not what was promised.

        What the client raises, when it has failed too often, passes through.
        """
        for folder in (self.blob(file).parent, lock_folder(self.repo)):
            folder.mkdir(parents=True, exist_ok=True)
        held = self.held(file)
        with self._locked(file):
            # Another process may have brought some of it while this one waited for the lock.
            self.moved(self.held(file) - held)
            if not has_size(self.blob(file), file.size):
                # A crash, or a copy that broke off, can leave a part under the name of the whole.
                self.blob(file).unlink(missing_ok=True)
                self._receive_checked(file)

    @contextmanager
    def _locked(self, file: HubFile) -> Iterator[None]:
        """Hold the lock that the client's own downloads of this file take too."""
        from huggingface_hub.utils import WeakFileLock

        path = lock_folder(self.repo) / f"{file.digest}.lock"
        with ExitStack() as stack:
            for attempt in count():
                with suppress(TimeoutError):
                    stack.enter_context(WeakFileLock(path, timeout=_PATIENCE))
                    break
                if attempt == 0:
                    self.waiting(f"another program is downloading {file.path}: waiting for it")
                if self.stop.is_set():
                    raise StoppedError
            yield

    def _receive_checked(self, file: HubFile) -> None:
        partial = self.partial(file)
        for _ in range(2):
            began = self._size(file)
            self._receive(file)
            if digest(partial, git=is_git_digest(file.digest)) == file.digest:
                os.replace(partial, self.blob(file))
                return
            self._forget(file)
            if not began:
                break
            # The beginning came another time, maybe from elsewhere: it gets one more chance.
        raise ModelError(
            f"{self.repo}/{file.path} did not arrive as the hub describes it: its hash is wrong",
            "try again; if it happens again, something between here and the hub changes files",
        )

    def _receive(self, file: HubFile) -> None:
        """Append to the part until it has the whole size, through as many connections as needed."""
        self.partial(file).touch()
        failures, begun_again = 0, False
        while (size := self._size(file)) < file.size:
            try:
                self._append(file, size)
                problem: Exception = ConnectionError("the hub sent less than it promised")
            except Exception as error:
                if status_of(error) == _RANGE_NOT_SATISFIABLE and size and not begun_again:
                    self._forget(file)
                    begun_again = True
                elif not is_worth_another_try(error):
                    raise
                problem = error
            if self.stop.is_set():
                raise StoppedError
            reached = self._size(file)
            if reached >= file.size:
                return
            failures = 1 if reached > size else failures + 1
            if failures >= _TRIES:
                raise problem
            self.waiting(f"the connection broke, trying again: {file.path}")
            self.stop.wait(min(2.0 ** (failures - 1), _LONGEST_WAIT))

    def _append(self, file: HubFile, size: int) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        # Compressed on the way, a range would count other bytes than those of the file.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if size:
            headers["Range"] = f"bytes={size}-"
        url = hf_hub_url(self.repo, file.path, revision=self.commit)
        # The session leaves the token out when it is sent on to another host.
        with get_session().stream(
            "GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
        ) as response:
            hf_raise_for_status(response)
            if size and response.status_code != _PARTIAL_CONTENT:
                self._forget(file)
            with self.partial(file).open("ab") as part:
                for chunk in response.iter_bytes():
                    if self.stop.is_set():
                        raise StoppedError
                    part.write(chunk)
                    self.moved(len(chunk))
                part.flush()
                os.fsync(part.fileno())

    def _size(self, file: HubFile) -> int:
        """Bytes received so far."""
        partial = self.partial(file)
        return partial.stat().st_size if partial.exists() else 0

    def _forget(self, file: HubFile) -> None:
        self.moved(-self._size(file))
        self.partial(file).write_bytes(b"")
