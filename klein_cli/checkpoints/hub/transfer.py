"""One file from the hub into its cache: resumed where it broke off, and checked.

huggingface_hub (since 1.18) downloads to a temporary file with a random name and deletes it when
the attempt fails, so that a connection lost at 7 of 8 GB costs 7 GB; after a kill it stays, and is
never used. Here the partial file is DIGEST.incomplete, beside the place of the complete one, until
its hash is right: any process can resume it.
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
from klein_cli.checkpoints.hub.cache import blob_path, lock_folder
from klein_cli.checkpoints.hub.errors import is_transient
from klein_cli.checkpoints.hub.repository import HubFile, is_git_digest
from klein_cli.errors import ModelError

_TRIES = 8
"""Failures in a row, without a byte in between, before giving up: two minutes."""

_LONGEST_WAIT = 30.0
_PATIENCE = 1.0
_PARTIAL_CONTENT = 206


def has_size(path: Path, size: int) -> bool:
    """Whether there is a file at `path`, of `size` bytes."""
    return path.is_file() and path.stat().st_size == size


class StoppedError(Exception):
    """Another file failed, or the user interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Downloads files of one commit.

    `moved` is called with bytes received, negative when some are discarded, and `waiting` with the
    reason why nothing moves; both from several threads.
    """

    repo: str
    commit: str
    moved: Callable[[int], None]
    waiting: Callable[[str], None]
    stop: threading.Event

    def held(self, file: HubFile) -> int:
        """Bytes of the file that need not be received again."""
        if has_size(self._blob(file), file.size):
            return file.size
        return min(self._received(file), file.size)

    def fetch(self, file: HubFile) -> None:
        """Receive the rest of a file. Raises ModelError when its hash is wrong.

        What the client raises, when it has failed too often, passes through.
        """
        for folder in (self._blob(file).parent, lock_folder(self.repo)):
            folder.mkdir(parents=True, exist_ok=True)
        held = self.held(file)
        with self._locked(file):
            # Another process may have received some of it while this one waited for the lock.
            self.moved(self.held(file) - held)
            if not has_size(self._blob(file), file.size):
                # A crash, or an interrupted copy, can leave a partial file under this name.
                self._blob(file).unlink(missing_ok=True)
                self._receive_checked(file)

    def _blob(self, file: HubFile) -> Path:
        return blob_path(self.repo, file.digest)

    def _partial(self, file: HubFile) -> Path:
        return self._blob(file).with_name(f"{file.digest}.incomplete")

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
        partial = self._partial(file)
        for _ in range(2):
            resumed = self._received(file) > 0
            self._receive(file)
            if digest(partial, git=is_git_digest(file.digest)) == file.digest:
                os.replace(partial, self._blob(file))
                return
            self._discard(file)
            if not resumed:
                break
            # Its beginning was received another time, maybe from elsewhere: once more, from zero.
        raise ModelError(
            f"{self.repo}/{file.path} arrived damaged: its hash is not the one on the hub",
            "try again; if it happens again, something between here and the hub changes files",
        )

    def _receive(self, file: HubFile) -> None:
        """Append to the partial file until it is complete, over as many connections as needed."""
        self._partial(file).touch()
        failures = 0
        while (size := self._received(file)) < file.size:
            problem: Exception = ModelError(
                f"the hub sent less of {self.repo}/{file.path} than it announced", "try again later"
            )
            try:
                self._append(file, size)
            except Exception as error:
                if not is_transient(error):
                    raise
                problem = error
            if self.stop.is_set():
                raise StoppedError
            reached = self._received(file)
            if reached >= file.size:
                return
            failures = 1 if reached > size else failures + 1
            if failures >= _TRIES:
                raise problem
            self.waiting(f"the connection was lost, retrying: {file.path}")
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
                self._discard(file)
            with self._partial(file).open("ab") as part:
                for chunk in response.iter_bytes():
                    if self.stop.is_set():
                        raise StoppedError
                    part.write(chunk)
                    self.moved(len(chunk))
                part.flush()
                os.fsync(part.fileno())

    def _received(self, file: HubFile) -> int:
        """Size of the partial file, in bytes."""
        partial = self._partial(file)
        return partial.stat().st_size if partial.exists() else 0

    def _discard(self, file: HubFile) -> None:
        self.moved(-self._received(file))
        self._partial(file).write_bytes(b"")
