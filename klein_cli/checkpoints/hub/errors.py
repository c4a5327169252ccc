"""What the hub's client raises -> ModelError, with the page where a person can do something."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from klein_cli.checkpoints.hub.cache import bytes_of
from klein_cli.errors import ModelError

_TINY = "or use --model tiny, which needs no download"
_UNSET = "unset HF_HUB_OFFLINE"
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """Say what kept `repo` from being fetched, as a ModelError; a bug passes through."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    page = f"https://huggingface.co/{repo}"
    try:
        yield
        return
    except HfHubHTTPError as error:
        what, todo = _refused(error, page)
    except OfflineModeIsEnabled:
        what, todo = f"is {_part(repo)} on this machine, and HF_HUB_OFFLINE is set", _UNSET
    except LocalEntryNotFoundError:
        what, todo = _unreachable(repo, page)
    except OSError as error:
        what, todo = _not_stored(error)
    except Exception as error:
        if not is_network_error(error):
            raise
        what, todo = _unreachable(repo, page)
    raise ModelError(f"{repo} {what}", f"{todo}, {_TINY}")


def is_network_error(error: Exception) -> bool:
    """Whether the connection failed, rather than the hub having answered."""
    from huggingface_hub import errors

    # httpx's in older clients, httpx2's in newer: the one the client itself imports.
    return isinstance(error, errors.HTTPError) and status_of(error) is None


def status_of(error: Exception) -> int | None:
    """The HTTP status that the hub answered with, None for any other error."""
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def is_worth_another_try(error: Exception) -> bool:
    """True for a broken connection and for a hub that is busy."""
    return status_of(error) in _TRANSIENT or is_network_error(error)


def _refused(error: Exception, page: str) -> tuple[str, str]:
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        RepositoryNotFoundError,
    )

    status = status_of(error)
    if isinstance(error, GatedRepoError):
        return (
            "asks for its terms to be accepted",
            f"accept them at {page}, then `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            "is not on the hub, or is private",
            f"look at {page}, log in with `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, DisabledRepoError):
        return "was disabled by the hub", f"see {page}"
    if status in (401, 403):
        return (
            f"was refused by the hub ({status})",
            f"see {page}, and whether HF_TOKEN is right: `hf auth whoami`",
        )
    if status == 416:
        return "has a file that is shorter than the hub says", f"try again later, see {page}"
    if status == 429:
        return "could not be downloaded: too many requests (429)", f"wait a while, see {page}"
    if status is not None and status >= 500:
        return f"could not be downloaded: the hub has trouble ({status})", f"try again, see {page}"
    return f"could not be downloaded ({_first_line(error)})", f"try again, see {page}"


def _unreachable(repo: str, page: str) -> tuple[str, str]:
    what = f"is {_part(repo)} on this machine and the hub cannot be reached"
    return what, f"connect and see {page}"


def _part(repo: str) -> str:
    return "only partly" if bytes_of(repo) else "not"


def _not_stored(error: OSError) -> tuple[str, str]:
    reason = error.strerror or _first_line(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            "could not be stored: the disk is full",
            "make room or set HF_HOME to a folder on another disk (what has come is kept)",
        )
    return f"could not be stored ({reason})", "set HF_HOME to a folder you can write in"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
