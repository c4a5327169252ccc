"""The routes, behind the guard."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from klein_cli.errors import KleinError
from klein_cli.serve.errors import ApiError
from klein_cli.serve.guard import App, Guard, Rules
from klein_cli.serve.health import Health
from klein_cli.serve.jobs import Jobs
from klein_cli.serve.openai import Images
from klein_cli.serve.service import Service


def application(service: Service, rules: Rules, *, stop: Callable[[], None]) -> App:
    """The server as an ASGI application; `stop` ends it, as SIGTERM does."""
    health, jobs, images = Health(service), Jobs(service), Images(service)
    routes = [
        Route("/livez", health.live),
        Route("/readyz", health.ready),
        Route("/health", health.ready),
        Route("/metrics", health.metrics),
        Route("/klein/v1/hello", jobs.hello),
        Route("/klein/v1/status", jobs.status),
        Route("/klein/v1/draw", jobs.draw, methods=["POST"]),
        Route("/klein/v1/unload", jobs.unload, methods=["POST"]),
        Route("/klein/v1/stop", jobs.stop, methods=["POST"]),
        Route("/v1/jobs/{job}", jobs.cancel, methods=["DELETE"]),
        Route("/v1/models", images.models),
        Route("/v1/models/{name:path}", images.model),
        Route("/v1/images/generations", images.generations, methods=["POST"]),
        Route("/v1/images/files/{name}", images.kept),
    ]
    handlers = dict.fromkeys((ApiError, KleinError, Exception), _error)
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error, **handlers})
    app.state.stop = stop
    return Guard(app, rules, service.metrics, service.log)


async def _error(request: Request, error: Exception) -> JSONResponse:
    return ApiError.of(error).response()


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """What starlette itself refuses: an unknown route, a wrong method, a broken form."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    return ApiError(error.status_code, error.detail, headers=headers).response()
