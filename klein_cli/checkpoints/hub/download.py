"""A repository's wanted files -> its snapshot in the cache, complete and verified."""

from __future__ import annotations

import glob
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from klein_cli.checkpoints.folder import INDEX_FILE, digest, free_space
from klein_cli.checkpoints.hub.cache import blob_path, cache_folder, point_main_to, snapshot_path
from klein_cli.checkpoints.hub.errors import translate_errors
from klein_cli.checkpoints.hub.repository import HubFile, Listing, is_git_digest, listing
from klein_cli.checkpoints.hub.transfer import StoppedError, Transfer, has_size
from klein_cli.errors import ModelError

_AT_ONCE = 4
_SPARE = 2**28
"""Bytes of the disk that a download leaves alone."""

GIGABYTE = 10**9

T = TypeVar("T")


class Watch:
    """The progress of a download; this one ignores it. Called from several threads."""

    def begin(self, what: str, total: int) -> None:
        """A phase of `total` bytes: "checking" or "downloading"."""

    def move(self, amount: int) -> None:
        """`amount` more bytes are done; negative when some must be received again."""

    def say(self, what: str) -> None:
        """A message for the user."""


def download(
    repo: str,
    patterns: Sequence[str],
    *,
    watch: Watch | None = None,
    check_all: bool = False,
    needed: str = INDEX_FILE,
) -> Path:
    """The snapshot folder of `repo`'s main branch as it is now, with the files of `patterns`, of
    which `needed` must be one.

    Every file fetched is checked against the hub's hash before it enters the cache; with
    `check_all`, those that were there before as well, and a damaged one is fetched again. What was
    received before an error stays, and the next download resumes there. Raises ModelError.
    """
    wanted = listing(repo, patterns)
    if needed not in {file.path for file in wanted.files}:
        why = ": it is not in the diffusers layout" if needed == INDEX_FILE else ""
        raise ModelError(f"{repo} has no {needed}{why}", f"see https://huggingface.co/{repo}")
    return fetch(wanted, watch=watch, check_all=check_all)


def fetch(wanted: Listing, *, watch: Watch | None = None, check_all: bool = False) -> Path:
    """The snapshot folder with the files of a listing in it. See `download`."""
    with translate_errors(wanted.repo):
        _complete(wanted, watch or Watch(), check_all)
        return _link_snapshot(wanted)


def index_of(repo: str) -> Path:
    """The snapshot folder of `repo` with its model_index.json alone, checked. Raises ModelError."""
    return download(repo, [INDEX_FILE], check_all=True)


def check_room(repo: str, needed: int) -> None:
    """Raise ModelError unless the cache's disk has room for `needed` more bytes and a little."""
    folder = cache_folder()
    free = free_space(folder)
    if free < needed + _SPARE:
        raise ModelError(
            f"{repo} needs {needed / GIGABYTE:.1f} GB more, and the disk of {folder} has "
            f"{free / GIGABYTE:.1f} GB free",
            "make room, or set HF_HOME to a folder on another disk",
        )


def _complete(wanted: Listing, watch: Watch, check_all: bool) -> None:
    """Every wanted file into the cache's blobs."""
    transfer = Transfer(
        repo=wanted.repo,
        commit=wanted.commit,
        moved=watch.move,
        waiting=watch.say,
        stop=threading.Event(),
    )
    if check_all:
        _remove_damaged(_copies(wanted), transfer.stop, watch)
    here = {file.digest for _, file in _copies(wanted)}
    # The same content under two paths is one blob.
    missing = list({file.digest: file for file in wanted.files if file.digest not in here}.values())
    if not missing:
        return
    held = sum(transfer.held(file) for file in missing)
    total = sum(file.size for file in missing)
    check_room(wanted.repo, total - held)
    watch.begin("downloading", total)
    watch.move(held)
    # The largest first: it takes longest.
    _run_all(transfer.fetch, sorted(missing, key=lambda file: -file.size), transfer.stop)


def _copies(wanted: Listing) -> list[tuple[Path, HubFile]]:
    """Where the wanted files are in their full size: each once, if links can be made.

    Where they cannot, the snapshot itself has a copy.
    """
    snapshot = [(snapshot_path(wanted.repo, wanted.commit, f.path), f) for f in wanted.files]
    blobs = [(blob_path(wanted.repo, file.digest), file) for file in wanted.files]
    # By where they lead, and the blobs last: a blob is named, not the links to it.
    found = {
        path.resolve(): (path, file)
        for path, file in [*snapshot, *blobs]
        if has_size(path, file.size)
    }
    return list(found.values())


def _remove_damaged(
    copies: Sequence[tuple[Path, HubFile]], stop: threading.Event, watch: Watch
) -> None:
    """Take every damaged one of `copies` out of the cache, so that it is fetched again."""

    def on_bytes(amount: int) -> None:
        watch.move(amount)
        if stop.is_set():
            raise StoppedError

    def check(copy: tuple[Path, HubFile]) -> None:
        path, file = copy
        if digest(path, git=is_git_digest(file.digest), on_bytes=on_bytes) != file.digest:
            watch.say(f"{file.path} is damaged: downloading it again")
            path.unlink()

    if copies:
        watch.begin("checking", sum(file.size for _, file in copies))
        _run_all(check, copies, stop)


def _run_all(work: Callable[[T], None], items: Iterable[T], stop: threading.Event) -> None:
    """Do `work` for each item, several at once; the first failure stops the others."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        running = [pool.submit(work, item) for item in items]
        try:
            for done in as_completed(running):
                done.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _link_snapshot(wanted: Listing) -> Path:
    """Let the client make the snapshot: every blob is there, so that it only links them.

    It is asked for the commit that was listed: of a branch that has moved on meanwhile it would
    fetch the new files itself, and not check them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    for file in wanted.files:
        path = snapshot_path(wanted.repo, wanted.commit, file.path)
        # The client takes whatever lies there as it is.
        if not has_size(path, file.size):
            path.unlink(missing_ok=True)
    disable_progress_bars()
    _bound_requests()
    paths = [glob.escape(file.path) for file in wanted.files]
    root = snapshot_download(wanted.repo, revision=wanted.commit, allow_patterns=paths)
    point_main_to(wanted.repo, wanted.commit)
    return Path(root)


def _bound_requests() -> None:
    """Give the client's own requests an end: it waits for an answer without one."""
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT
    from huggingface_hub.utils import get_session

    def bound(request: Any) -> None:
        limits = request.extensions["timeout"].items()
        request.extensions["timeout"] = {
            name: HF_HUB_ETAG_TIMEOUT if limit is None else limit for name, limit in limits
        }

    get_session().event_hooks["request"].append(bound)
