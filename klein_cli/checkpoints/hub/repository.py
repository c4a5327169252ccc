"""What a repository holds: its commit, and of each file the size and the hash."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING

from klein_cli.checkpoints.hub.environment import check_connection, hub_address
from klein_cli.checkpoints.hub.errors import translate_errors
from klein_cli.errors import ModelError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

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
    with translate_errors(repo):
        commit, entries = _described(repo)
    _check_paths(repo, entries)
    files = tuple(_file(repo, path, entries[path]) for path in sorted(entries) if wanted(path))
    if not isinstance(commit, str) or not _SHA1.fullmatch(commit):
        raise ModelError(f"the hub gives no commit for {repo}", "check HF_ENDPOINT")
    return Listing(repo=repo, commit=commit, files=files)


def _described(repo: str) -> tuple[object, dict[str, RepoSibling]]:
    """The newest commit of `repo` and the files at it, by path; one request, which has an end."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    check_connection()
    try:
        found = HfApi().model_info(repo, files_metadata=True, timeout=HF_HUB_ETAG_TIMEOUT)
        return found.sha, {entry.rfilename: entry for entry in found.siblings or ()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = "a web page came" if isinstance(error, JSONDecodeError) else "something else came"
        raise ModelError(
            f"{hub_address()} does not answer as the hub does ({what}, not data)",
            "log in to the network, look at HTTPS_PROXY and HF_ENDPOINT; or --model tiny",
        ) from None


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


def _file(repo: str, path: str, entry: RepoSibling) -> HubFile:
    """Checked, because the digest becomes the name of a file on this machine."""
    digest = entry.blob_id if entry.lfs is None else entry.lfs.sha256
    size = entry.size if entry.lfs is None else entry.lfs.size
    if not isinstance(digest, str) or not is_digest(digest) or not isinstance(size, int):
        raise ModelError(f"the hub gives no valid hash for {repo}/{path}", "check HF_ENDPOINT")
    return HubFile(path=path, size=size, digest=digest)
