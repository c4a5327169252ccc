"""What a repository holds: its commit, and of each file the size and the hash."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath

from klein_cli.checkpoints.hub.errors import translate_errors
from klein_cli.errors import ModelError

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SHA1 = re.compile(r"[0-9a-f]{40}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file of a repository. `size` in bytes.

    `digest`, in hex, is its SHA-256 (64 digits) or, for a small file, the SHA-1 of its git blob
    (40 digits); the cache names the file by it.
    """

    path: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The wanted files of a repository at one commit."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]


def is_git_digest(digest: str) -> bool:
    """Whether `digest` is that of a git blob, rather than of the file alone."""
    return bool(_SHA1.fullmatch(digest))


def is_digest(name: str) -> bool:
    """Whether `name` is a hash of either kind."""
    return bool(_SHA256.fullmatch(name) or _SHA1.fullmatch(name))


def listing(repo: str, patterns: Sequence[str]) -> Listing:
    """Ask the hub for the files of `repo` that match one of `patterns`. Raises ModelError."""
    return listing_of(repo, lambda path: any(matches(path, one) for one in patterns))


def listing_of(repo: str, wanted: Callable[[str], bool]) -> Listing:
    """Ask the hub for the files of `repo` whose paths are `wanted`. Raises ModelError."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with translate_errors(repo):
        api = HfApi()
        commit = api.model_info(repo).sha or ""
        tree = api.list_repo_tree(repo, recursive=True, revision=commit)
        entries = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    _check_paths(repo, entries)
    files = tuple(_file(repo, entries[path]) for path in sorted(entries) if wanted(path))
    if not _SHA1.fullmatch(commit):
        raise ModelError(f"the hub gives no commit for {repo}", "check HF_ENDPOINT")
    return Listing(repo=repo, commit=commit, files=files)


def matches(path: str, pattern: str) -> bool:
    """Whether `path` is as `pattern`, whose `*` stands for anything but a slash and a dot."""
    return re.fullmatch("[^/.]*".join(map(re.escape, pattern.split("*"))), path) is not None


def _check_paths(repo: str, paths: Iterable[object]) -> None:
    """Raise ModelError unless each leads to a place inside the snapshot, on every system.

    The paths become those of files on this machine, which are removed when they are damaged.
    """
    for path in paths:
        if not isinstance(path, str) or not _stays_inside(path):
            raise ModelError(
                f"{repo} lists a file with an unsafe path: {path!r}",
                "do not trust this copy of the model; check HF_ENDPOINT",
            )


def _stays_inside(path: str) -> bool:
    if "\\" in path or PureWindowsPath(path).drive:
        return False
    return {"", ".", ".."}.isdisjoint(path.split("/"))


def _file(repo: str, entry: object) -> HubFile:
    """Checked, because the digest becomes the name of a file on this machine."""
    lfs = getattr(entry, "lfs", None)
    path, size = getattr(entry, "path", ""), getattr(entry, "size", -1)
    digest = getattr(entry, "blob_id", "") if lfs is None else lfs.sha256
    if not isinstance(digest, str) or not is_digest(digest) or not isinstance(size, int):
        raise ModelError(f"the hub gives no valid hash for {repo}/{path}", "check HF_ENDPOINT")
    return HubFile(path=path, size=size if lfs is None else lfs.size, digest=digest)
