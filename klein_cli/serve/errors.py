"""What goes wrong for a client, in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from klein_cli.errors import (
    CancelledError,
    KleinError,
    ModelError,
    OutOfMemoryError,
    UsageError,
)
from klein_cli.serve.line import LineFull, Stopping, TooLate

_LEFT = 499
"""The client has gone before its answer: what nginx calls it."""


class ApiError(Exception):
    """An answer that is an error. `param` is the field that is to blame, `code` OpenAI's word."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    @classmethod
    def of(cls, error: Exception) -> ApiError:
        """What a client is told of an error: of a bug, that it was one."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, LineFull):
            wait = str(error.retry_after)
            return cls(
                429,
                f"{error.message}: yours would be number {error.place}",
                code="queue_full",
                headers={"retry-after": wait, "x-klein-place": str(error.place)},
            )
        if not isinstance(error, KleinError):
            message = f"{type(error).__name__} in the server: this is a bug in klein"
            return cls(500, message, headers=_NO_RETRY)
        return cls(
            _status(error),
            f"{error.message}; {error.hint}" if error.hint else error.message,
            headers={"retry-after": "5"} if isinstance(error, Stopping) else _NO_RETRY,
        )

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        said = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": said}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, headers=self.headers)


_NO_RETRY = {"x-should-retry": "false"}
"""Clients draw what failed twice more unless they are told that it will fail again."""


def _status(error: KleinError) -> int:
    if isinstance(error, UsageError):
        return 400
    if isinstance(error, Stopping):
        return 503
    if isinstance(error, TooLate):
        return 504
    if isinstance(error, CancelledError):
        return _LEFT
    return 507 if isinstance(error, OutOfMemoryError | ModelError) else 500
