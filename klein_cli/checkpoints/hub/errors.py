"""What the hub's client raises -> ModelError, with the page where a person can act."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from klein_cli.checkpoints.hub.cache import bytes_of
from klein_cli.checkpoints.hub.environment import (
    ENDPOINT,
    PATIENCE,
    check_environment,
    hub_address,
    proxy_in_use,
)
from klein_cli.errors import ModelError, first_line

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_TINY = "or use --model tiny, which needs no download"
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@contextmanager
def translate_errors(repo: str) -> Iterator[None]:
    """Raise a ModelError that says why `repo` was not downloaded; a bug passes through."""
    check_environment()
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    page = f"https://huggingface.co/{repo}"
    try:
        yield
        return
    except HfHubHTTPError as error:
        what, todo = _refused(error, page)
    except OfflineModeIsEnabled:
        what = f"is {_how_much(repo)} on this machine, and HF_HUB_OFFLINE is set"
        todo = "unset HF_HUB_OFFLINE"
    except (LocalEntryNotFoundError, HTTPError) as error:
        # HTTPError is httpx's in older clients, httpx2's in newer: the one the client imports.
        why, todo = _not_reached(error, page)
        what = f"is {_how_much(repo)} on this machine and {why}"
    except OSError as error:
        what, todo = _not_stored(error)
    raise ModelError(f"{repo} {what}", f"{todo}, {_TINY}")


def is_transient(error: Exception) -> bool:
    """True for a lost connection and for a hub that is busy."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT
    return isinstance(error, HTTPError)


def _refused(error: HfHubHTTPError, page: str) -> tuple[str, str]:
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        RepositoryNotFoundError,
    )

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return (
            "requires you to accept its terms",
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
    if status == 407:
        return "was refused by the proxy (407)", "put its name and password into HTTPS_PROXY"
    if status == 429:
        return "could not be downloaded: too many requests (429)", f"wait a while, see {page}"
    if status >= 500:
        return (
            f"could not be downloaded: the hub is failing ({status})",
            f"try again later, see {page}",
        )
    return f"could not be downloaded ({first_line(error)})", f"try again, see {page}"


def _not_reached(error: Exception, page: str) -> tuple[str, str]:
    hub, proxy = hub_address(), proxy_in_use()
    through = f" through the proxy in {proxy}" if proxy else ""
    look = f"check {proxy.split()[0]}" if proxy else f"connect and see {page}"
    if ENDPOINT in hub:
        look = f"an {ENDPOINT} begins with https://: check it" + (f", and {look}" if proxy else "")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            f"{hub} shows a certificate that is not trusted here{through}",
            "set SSL_CERT_FILE to the certificates of your network",
        )
    if type(error).__name__.endswith("Timeout"):
        return (
            f"{hub} does not answer in time{through}",
            f"{look}; {PATIENCE} is the time in seconds",
        )
    return f"{hub} cannot be reached{through}", look


def _how_much(repo: str) -> str:
    return "only partly" if bytes_of(repo) else "not"


def _not_stored(error: OSError) -> tuple[str, str]:
    reason = error.strerror or first_line(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            "could not be stored: the disk is full",
            "make room or set HF_HOME to a folder on another disk (what was downloaded is kept)",
        )
    return f"could not be stored ({reason})", "set HF_HOME to a folder you can write to"
