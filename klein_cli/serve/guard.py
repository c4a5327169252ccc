"""What stands before every route: who may ask, from where, how much and how slowly.

The socket of the owner needs no key: its folder is theirs alone. Over TCP, a browser that a web
page sends must not get through (Host, Origin), and beyond this machine nobody without a key.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from klein_cli.serve.errors import ApiError
from klein_cli.serve.log import Log
from klein_cli.serve.metrics import Metrics

MAX_BODY = 64_000_000
BODY_SECONDS = 60.0
OWNER = "klein_owner"
"""Whether a request came over the owner's socket: in the scope's state."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_PUBLIC = ("/livez", "/readyz", "/health")
_SAFE = ("GET", "HEAD", "OPTIONS")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_REQUEST_ID = re.compile(r"[\w.-]{1,100}", re.ASCII)
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
)
_CORS_METHODS = "GET, POST, DELETE, OPTIONS"
_CORS_HEADERS = (
    "authorization, content-type, x-request-id, x-stainless-arch, x-stainless-async, "
    "x-stainless-custom-poll-interval, x-stainless-helper-method, x-stainless-lang, "
    "x-stainless-os, x-stainless-package-version, x-stainless-poll-helper, "
    "x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, "
    "x-stainless-timeout"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Who may ask over TCP. `hosts` are the names by which the server may be called, None for any;
    `origins` the web pages of others that may use it; `keys` one of which is needed, if there are.
    """

    hosts: Collection[str] | None = _LOOPBACK
    origins: Collection[str] = ()
    keys: tuple[str, ...] = ()
    max_body: int = MAX_BODY
    body_seconds: float = BODY_SECONDS


class Guard:
    """An ASGI application around another, which gets only what passes the `rules`."""

    def __init__(self, app: App, rules: Rules, metrics: Metrics, log: Log) -> None:
        self._app = app
        self._rules = rules
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        asked_id = headers.get("x-request-id", "")
        request_id = asked_id if _REQUEST_ID.fullmatch(asked_id) else secrets.token_hex(8)
        scope["state"]["request_id"] = request_id
        answering = self._answering(scope, send, request_id, headers.get("origin"))
        try:
            self._check(scope, headers)
            if scope["method"] == "OPTIONS":
                await _nothing(answering)
                return
            bounded = _Bounded(receive, self._rules, headers.get("content-length"))
            await self._app(scope, bounded.receive, answering)
        except ApiError as error:
            await error.response()(scope, receive, answering)
        except Exception as error:  # which was answered as a bug already, where that was possible
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.filename}:{where.lineno}"
            self._log.event("bug", error=type(error).__name__, at=place, request=request_id)

    def _check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Raise ApiError for who may not ask."""
        if scope["state"].get(OWNER):
            return
        rules, host = self._rules, headers.get("host", "")
        if rules.hosts is not None and _name_of(host) not in rules.hosts:
            raise ApiError(421, "the server is not called that: use localhost or 127.0.0.1")
        origin = headers.get("origin")
        foreign = origin is not None and not self._is_allowed(origin, scope, host)
        unasked = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if scope["method"] not in _SAFE and (foreign or (unasked and origin is None)):
            raise ApiError(403, "a web page of another site may not use this server")
        if rules.keys and scope["path"] not in (*_PUBLIC, "/") and scope["method"] != "OPTIONS":
            self._check_key(headers)

    def _check_key(self, headers: Mapping[str, str]) -> None:
        kind, _, given = headers.get("authorization", "").partition(" ")
        said = given.strip().encode("utf-8", "replace") if kind.lower() == "bearer" else b""
        # All are compared, each in constant time: how long it takes says nothing.
        known = [hmac.compare_digest(said, key.encode()) for key in self._rules.keys]
        if not any(known):
            raise ApiError(
                401,
                "a key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    def _is_allowed(self, origin: str, scope: Scope, host: str) -> bool:
        return origin == f"{scope['scheme']}://{host}" or origin in self._rules.origins

    def _answering(self, scope: Scope, send: Send, request_id: str, origin: str | None) -> Send:
        """`send`, with the headers that every answer has, counted and logged."""
        extra = [*_ALWAYS, (b"x-request-id", request_id.encode())]
        if origin is not None and origin in self._rules.origins:
            extra += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"vary", b"origin"),
                (b"access-control-allow-methods", _CORS_METHODS.encode()),
                (b"access-control-allow-headers", _CORS_HEADERS.encode()),
            ]

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message.get("headers", ())}
                own = [pair for pair in extra if pair[0] not in given]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
                self._count(scope, message["status"], request_id)
            await send(message)

        return answering

    def _count(self, scope: Scope, status: int, request_id: str) -> None:
        route = scope.get("route")
        path = getattr(route, "path", "other")
        self._metrics.count("klein_requests_total", route=path, code=str(status))
        if path not in (*_PUBLIC, "/metrics"):
            self._log.event(
                "answered", method=scope["method"], route=path, status=status, request=request_id
            )


class _Bounded:
    """The body of a request, no more of it than there may be, and no slower."""

    def __init__(self, receive: Receive, rules: Rules, length: str | None) -> None:
        self._receive = receive
        self._rules = rules
        self._left = rules.max_body
        self._until = asyncio.get_running_loop().time() + rules.body_seconds
        self._whole = False
        if length is not None and (not length.isdigit() or int(length) > rules.max_body):
            raise self._too_large()

    async def receive(self) -> Message:
        """The next piece. Raises ApiError."""
        if self._whole:  # all that can come is that the client leaves
            return await self._receive()
        left = self._until - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0))
        except TimeoutError:
            raise ApiError(
                408, f"the request was not whole after {self._rules.body_seconds:g} s"
            ) from None
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise self._too_large()
        return message

    def _too_large(self) -> ApiError:
        most = self._rules.max_body // 1_000_000
        return ApiError(413, f"the request is too large: at most {most} MB")


async def _nothing(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _name_of(host: str) -> str:
    """A Host header less its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
