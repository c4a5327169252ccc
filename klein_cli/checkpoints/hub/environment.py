"""What the environment tells the hub's client, looked at before the client is.

huggingface_hub reads its variables as it is imported, and httpx those of proxies and certificates
when it first connects: either ends in words of Python's for a value that cannot be. Here each is a
ModelError that names the variable. Variables that are fine, or that nothing asks for, are left
alone.
"""

from __future__ import annotations

import importlib.util
import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from klein_cli.errors import ModelError, first_line

ENDPOINT = "HF_ENDPOINT"
PATIENCE = "HF_HUB_ETAG_TIMEOUT"

_SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", PATIENCE)
_FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_TOKEN_PATH")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PROXIES = ("all_proxy", "https_proxy", "http_proxy")
_SOCKS = ("socks5", "socks5h")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
_VISIBLE = re.compile(r"[!-~]*")
_HEADER = re.compile(r"[ -~]*")


def check_environment() -> None:
    """Raise ModelError for a variable that the client cannot even be imported with."""
    for name in _SECONDS:
        _check_seconds(name)
    for name in _FOLDERS:
        _check_folder(name)
    if "HF_HOME" not in os.environ:
        _check_folder("XDG_CACHE_HOME")
    _check_endpoint()


def check_connection() -> None:
    """Raise ModelError for a variable that keeps the client from asking the hub anything."""
    _check_endpoint("http", "https")
    for name in _proxy_variables():
        _check_proxy(name)
    _check_certificates()
    _check_token()
    origin = "HF_HUB_USER_AGENT_ORIGIN"
    if not _HEADER.fullmatch(os.environ.get(origin, "")):
        raise ModelError(f"{origin} holds a character that no header can", f"unset {origin}")
    _check_client()


def hub_address() -> str:
    """How messages name the hub: its address where HF_ENDPOINT says another than the usual."""
    said = _set(ENDPOINT)
    return "the hub" if said is None else f"{without_password(said.rstrip('/'))} ({ENDPOINT})"


def proxy_in_use() -> str | None:
    """The proxy's variable and address, if requests to the hub go through one."""
    hub = urlsplit(os.environ.get(ENDPOINT) or "https://huggingface.co")
    if hub.hostname is None or proxy_bypass(hub.hostname):
        return None
    address = getproxies().get(hub.scheme) or getproxies().get("all")
    names = [name for name in _proxy_variables() if os.environ[name] == address]
    return f"{names[0]} ({without_password(os.environ[names[0]])})" if names else None


def without_password(address: str) -> str:
    """An address as it may be shown: less a name and a password before the host."""
    return re.sub(r"//[^/]*@", "//", address)


def _set(name: str) -> str | None:
    """The variable's value, None where it is not set. Raises ModelError for one of nothing."""
    value = os.environ.get(name)
    if value is not None and not value.strip():
        raise ModelError(f"{name} is set and empty", f"unset {name}")
    return value


def _check_seconds(name: str) -> None:
    value = _set(name)
    if value is None or re.fullmatch(r"\d{1,6}", value.strip(), re.ASCII):
        return
    digits = re.match(r"\d{1,6}", value, re.ASCII)
    right = max(1, int(digits[0])) if digits else 10
    raise ModelError(f"{name} is no whole number: {value}", f"{name}={right}")


def _check_folder(name: str) -> None:
    value = _set(name)
    if value is not None and os.path.expanduser(value).startswith("~"):
        raise ModelError(
            f"{name} leads to no folder: {value} has no home", f"write the whole path in {name}"
        )


def _check_endpoint(*schemes: str) -> None:
    value = _set(ENDPOINT)
    if value is not None and not _is_address(value, schemes):
        raise ModelError(
            f"{ENDPOINT} is no address: {without_password(value)}",
            f"an {ENDPOINT} begins with https://, or unset it",
        )


def _is_address(value: str, schemes: Collection[str]) -> bool:
    """Whether it is one of these schemes; any text that can be taken apart where there are none."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return False
    right = parts.scheme in schemes and parts.hostname and port != 0 and _VISIBLE.fullmatch(value)
    return bool(right) or not schemes


def _proxy_variables() -> Iterator[str]:
    """Those that are set and that httpx reads, in either case of letters."""
    return (name for name in os.environ if name.lower() in _PROXIES and os.environ[name])


def _check_proxy(name: str) -> None:
    value = os.environ[name]
    address = value if "://" in value else f"http://{value}"
    if not _is_address(address, ("http", "https", *_SOCKS)):
        raise ModelError(
            f"{name} is no proxy's address: {without_password(value)}",
            f"{name}=http://HOST:PORT, or unset it",
        )
    if address.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ModelError(
            f"the proxy in {name} is a SOCKS proxy, and the package for those is not installed",
            "pip install socksio into klein's environment, or name an http:// proxy",
        )


def _check_certificates() -> None:
    for name, is_right, kind in (
        ("SSL_CERT_FILE", os.path.isfile, "file"),
        ("SSL_CERT_DIR", os.path.isdir, "folder"),
    ):
        value = os.environ.get(name)
        if value and not (is_right(value) and os.access(value, os.R_OK)):
            raise ModelError(
                f"{name} is no {kind} of certificates that can be read: {value}",
                f"correct {name}, or unset it",
            )
    log = os.environ.get("SSLKEYLOGFILE")
    if log and not os.access(log if os.path.exists(log) else os.path.dirname(log) or ".", os.W_OK):
        raise ModelError(f"SSLKEYLOGFILE cannot be written: {log}", "unset SSLKEYLOGFILE")


def _check_client() -> None:
    """Let the client be made, whose own checks are the last."""
    from huggingface_hub.utils import get_session

    try:
        get_session()
    except Exception as error:
        named = [name for name in (*_CERTIFICATES, *_proxy_variables()) if os.environ.get(name)]
        raise ModelError(
            f"the connection to the hub cannot be set up: {_why(error)}",
            f"look at {' and '.join(named)}" if named else "look at the proxy and its certificates",
        ) from None


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)


def _check_token() -> None:
    """A token that no header can hold, or a file of one that cannot be read."""
    for name in _TOKENS:
        if not _VISIBLE.fullmatch(os.environ.get(name, "").strip()):
            raise ModelError(
                f"{name} holds a character that no token has",
                "copy it again from https://huggingface.co/settings/tokens",
            )
        if os.environ.get(name, "").strip():
            return
    from huggingface_hub.constants import HF_TOKEN_PATH

    _check_token_file(Path(HF_TOKEN_PATH))


def _check_token_file(path: Path) -> None:
    todo = "remove it and log in again with `hf auth login`, or set HF_TOKEN"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ModelError(f"the token's file {path} is no file", todo)
        data = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ModelError(
            f"the token's file {path} cannot be read: {error.strerror or first_line(error)}",
            "set HF_TOKEN, or HF_TOKEN_PATH to a file that you may read",
        ) from None
    if not re.fullmatch(rb"[!-~]*", data.strip()):
        raise ModelError(f"the token's file {path} holds no token", todo)
