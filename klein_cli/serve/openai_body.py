"""The JSON of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from klein_cli.serve.errors import ApiError
from klein_cli.tables import parse_json


async def json_body(request: Request) -> Mapping[str, Any]:
    """A request's JSON object. Raises ApiError for anything else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send JSON: Content-Type: application/json")
    try:
        body = parse_json((await request.body()).decode("utf-8"))
    except (ValueError, RecursionError):
        raise ApiError(400, "the request is not JSON") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the request is not a JSON object")
    return body
