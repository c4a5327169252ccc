"""The hub's cache on this machine: where a repository's snapshot lies, and how it is removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from klein_cli.checkpoints.folder import INDEX_FILE, is_readable, size_on_disk
from klein_cli.checkpoints.hub.environment import check_environment
from klein_cli.errors import ModelError
from klein_cli.tables import shortened

_PREFIX = "models--"
_OF_YOURS = "set HF_HOME to a folder you may read and write"


def cache_folder() -> Path:
    """Where the hub's client keeps models: HF_HUB_CACHE, or hub/ in HF_HOME, or ~/.cache.

    Raises ModelError when the environment leads to none.
    """
    check_environment()
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = os.path.expanduser(HF_HUB_CACHE)
    if folder.startswith("~"):
        raise ModelError("there is no home folder for the models", _OF_YOURS)
    return Path(folder)


def check_cache() -> None:
    """Raise ModelError when the cache is there and cannot be read."""
    with _reading():
        _look_into(cache_folder())


@contextmanager
def _reading() -> Iterator[None]:
    """An OSError in here is a ModelError that says what to do about the cache."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"the models' folder {shortened(str(cache_folder()), 300)} cannot be read: "
            f"{error.strerror or error}",
            _OF_YOURS,
        ) from None


def _look_into(folder: Path) -> bool:
    """Whether there is such a folder. Raises OSError when it cannot be read."""
    try:
        os.scandir(folder).close()
    except FileNotFoundError:
        return False
    return True


def repository_folder(repo: str) -> Path:
    """Where everything of `repo` lies, whether or not there is anything yet."""
    return cache_folder() / (_PREFIX + repo.replace("/", "--"))


def blob_path(repo: str, digest: str) -> Path:
    """Where the content with this digest lies once all of it is there."""
    return repository_folder(repo) / "blobs" / digest


def snapshot_path(repo: str, commit: str, path: str) -> Path:
    """Where a file of a commit is read: a link to its blob or, on some systems, a copy."""
    return repository_folder(repo) / "snapshots" / commit / path


def lock_folder(repo: str) -> Path:
    """Where the hub's client keeps its locks, one a file by digest."""
    return cache_folder() / ".locks" / repository_folder(repo).name


def cached(repo: str, revision: str | None = None) -> Path | None:
    """The snapshot of `repo` if its model_index.json is here, complete or not.

    `revision` is a commit; without one, the main branch's is meant.
    """
    with _reading():
        if not _look_into(repository_folder(repo)):
            return None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(
            repo, INDEX_FILE, cache_dir=cache_folder(), revision=revision
        )
    return Path(found).parent if isinstance(found, str) else None


def cached_file(repo: str, path: str) -> Path | None:
    """A file of `repo`'s main branch, if it is here."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, path, cache_dir=cache_folder())
    return Path(found) if isinstance(found, str) else None


def snapshot_root(repo: str) -> Path | None:
    """The snapshot of `repo`'s main branch, as far as it is here, whatever it is of."""
    try:
        commit = (repository_folder(repo) / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    root = repository_folder(repo) / "snapshots" / Path(commit).name
    return root if commit and root.is_dir() else None


def point_main_to(repo: str, commit: str) -> None:
    """Record `commit` as that of `repo`'s main branch, as the hub's client does."""
    ref = repository_folder(repo) / "refs" / "main"
    if ref.is_file() and ref.read_bytes() == commit.encode():
        return
    ref.parent.mkdir(parents=True, exist_ok=True)
    # Not beside it, where one left behind would be another branch.
    new = ref.parents[1] / f"main.{os.getpid()}.tmp"
    new.write_bytes(commit.encode())
    os.replace(new, ref)


def bytes_of(repo: str) -> int:
    """Bytes that `repo` takes in the cache, partial files included. Raises ModelError."""
    folder = repository_folder(repo)
    with _reading():
        return (size_on_disk(folder / "blobs") or size_on_disk(folder)) if _look_into(folder) else 0


def repositories() -> Iterator[str]:
    """The ids of all models in the cache whose model_index.json can be read, in order.

    Raises ModelError when the cache itself cannot be read.
    """
    check_cache()
    for index in sorted(cache_folder().glob(f"{_PREFIX}*--*/refs/main")):
        repo = index.parents[1].name.removeprefix(_PREFIX).replace("--", "/", 1)
        root = cached(repo)
        if root and is_readable(root / INDEX_FILE):
            yield repo


def remove(repo: str) -> int:
    """Remove all of `repo` from the cache and nothing else; the bytes it took.

    Raises ModelError when there is nothing of it, or when it cannot be removed.
    """
    folder = repository_folder(repo)
    if not folder.is_dir():
        raise ModelError(f"{repo} is not on this machine", "klein models lists what is")
    held = bytes_of(repo)
    try:
        _remove_revisions(repo)
        # What the client leaves: a first download that was interrupted is no repository to it.
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise ModelError(
            f"{repo} cannot be removed: {error.strerror or error}", f"look at {folder}"
        ) from None
    shutil.rmtree(lock_folder(repo), ignore_errors=True)
    return held


def _remove_revisions(repo: str) -> None:
    """By the hub's own client, which knows the store of blobs that repositories share."""
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(cache_folder())
    for found in cache.repos:
        if found.repo_id == repo and found.repo_type == "model":
            # Alone: a copy of a repository has its commits, and the client takes either for them.
            alone = replace(cache, repos=frozenset({found}))
            alone.delete_revisions(*(one.commit_hash for one in found.revisions)).execute()
