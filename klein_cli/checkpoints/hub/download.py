"""A repository's wanted files -> its snapshot in the cache, every file there and right."""

from __future__ import annotations

import glob
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

from klein_cli.checkpoints.folder import INDEX_FILE, digest
from klein_cli.checkpoints.hub.cache import cache_folder, point_main_to, repository_folder
from klein_cli.checkpoints.hub.errors import explained
from klein_cli.checkpoints.hub.repository import HubFile, Listing, is_git_digest, listing
from klein_cli.checkpoints.hub.transfer import StoppedError, Transfer, has_size
from klein_cli.errors import ModelError

_AT_ONCE = 4
_SPARE = 2**28
"""Bytes of the disk that a download leaves alone."""

GIGABYTE = 10**9


class Watch(Protocol):
    """Who looks on while a model is fetched. Called from several threads."""

    def begin(self, what: str, total: int) -> None:
        """A phase of `total` bytes: "checking" or "downloading"."""

    def move(self, amount: int) -> None:
        """`amount` more bytes are done; fewer than none when some must come again."""

    def say(self, what: str) -> None:
        """Something worth knowing happened."""


class Unwatched:
    """Nobody looks on."""

    def begin(self, what: str, total: int) -> None:
        """Nothing."""

    def move(self, amount: int) -> None:
        """Nothing."""

    def say(self, what: str) -> None:
        """Nothing."""


def download(
    repo: str, patterns: Sequence[str], *, watch: Watch | None = None, check_all: bool = False
) -> Path:
    """The snapshot folder of `repo`'s main branch as it is now, with the files of `patterns`.

    Every file fetched is checked against the hub's hash before it enters the cache; with
    `check_all`, those that were there before as well, and a damaged one is fetched again. What has
    come before an error stays and is gone on with the next time. Raises ModelError.
    """
    wanted = _wanted(repo, patterns)
    with explained(repo):
        _bring(wanted, watch or Unwatched(), check_all)
        return _placed(wanted)


def _wanted(repo: str, patterns: Sequence[str]) -> Listing:
    wanted = listing(repo, patterns)
    if INDEX_FILE not in {file.path for file in wanted.files}:
        raise ModelError(
            f"{repo} has no {INDEX_FILE}: it is not in the diffusers layout",
            f"see https://huggingface.co/{repo}",
        )
    return wanted


def _bring(wanted: Listing, watch: Watch, check_all: bool) -> None:
    """Every wanted file into the cache's blobs."""
    stop = threading.Event()
    transfer = Transfer(
        repo=wanted.repo, commit=wanted.commit, moved=watch.move, waiting=watch.say, stop=stop
    )
    # The same content under two paths is one blob.
    files = list({file.digest: file for file in wanted.files}.values())
    if check_all:
        _check_copies(wanted, files, transfer, watch)
    missing = [file for file in files if not _copies(wanted, file, transfer)]
    if not missing:
        return
    held = sum(transfer.held(file) for file in missing)
    total = sum(file.size for file in missing)
    check_room(wanted.repo, total - held)
    watch.begin("downloading", total)
    watch.move(held)
    # The largest first: it takes longest.
    _all(transfer.fetch, sorted(missing, key=lambda file: -file.size), stop)


def index_of(repo: str) -> Path:
    """The snapshot folder of `repo` with its model_index.json alone, checked. Raises ModelError."""
    return download(repo, [INDEX_FILE], check_all=True)


def check_room(repo: str, needed: int) -> None:
    """Raise ModelError unless the cache's disk has room for `needed` more bytes and a little."""
    folder = cache_folder()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free >= needed + _SPARE:
        return
    raise ModelError(
        f"{repo} needs {needed / GIGABYTE:.1f} GB more, and the disk of {folder} has "
        f"{free / GIGABYTE:.1f} GB free",
        "make room, or set HF_HOME to a folder on another disk",
    )


def _copies(wanted: Listing, file: HubFile, transfer: Transfer) -> list[Path]:
    """Where the file's content is in its full size: once, if links can be made.

    Where they cannot, the snapshot itself has a copy.
    """
    alike = [_in_snapshot(wanted, one) for one in wanted.files if one.digest == file.digest]
    # By where they lead, and the blob last: it is named, not the links to it.
    places = {path.resolve(): path for path in [*alike, transfer.blob(file)]}
    return [path for path in places.values() if has_size(path, file.size)]


def _in_snapshot(wanted: Listing, file: HubFile) -> Path:
    return repository_folder(wanted.repo) / "snapshots" / wanted.commit / file.path


def _check_copies(
    wanted: Listing, files: Sequence[HubFile], transfer: Transfer, watch: Watch
) -> None:
    """Take every damaged copy of `files` out of the cache."""
    here = {file: copies for file in files if (copies := _copies(wanted, file, transfer))}
    if not here:
        return
    watch.begin("checking", sum(file.size * len(copies) for file, copies in here.items()))

    def check(file: HubFile) -> None:
        for path in here[file]:
            _check(path, file, transfer, watch)

    _all(check, here, transfer.stop)


def _check(path: Path, file: HubFile, transfer: Transfer, watch: Watch) -> None:
    """Take the file at `path` out of the cache if it is damaged, so that it is fetched again."""

    def on_bytes(amount: int) -> None:
        watch.move(amount)
        if transfer.stop.is_set():
            raise StoppedError

    found = digest(path, git=is_git_digest(file.digest), on_bytes=on_bytes)
    if found != file.digest:
        watch.say(f"{file.path} is damaged and is fetched again")
        path.unlink()


def _all(work: Callable[[HubFile], None], files: Iterable[HubFile], stop: threading.Event) -> None:
    """Do `work` for each file, several at once; the first failure stops the others."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        running = [pool.submit(work, file) for file in files]
        try:
            for done in as_completed(running):
                done.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _placed(wanted: Listing) -> Path:
    """Let the client make the snapshot: every blob is there, so that it only links them.

    It is asked for the commit that was listed: of a branch that has moved on meanwhile it would
    fetch the new files itself, and not check them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    for file in wanted.files:
        # The client takes what lies there for right.
        if not has_size(_in_snapshot(wanted, file), file.size):
            _in_snapshot(wanted, file).unlink(missing_ok=True)
    disable_progress_bars()
    paths = [glob.escape(file.path) for file in wanted.files]
    root = snapshot_download(wanted.repo, revision=wanted.commit, allow_patterns=paths)
    point_main_to(wanted.repo, wanted.commit)
    return Path(root)
