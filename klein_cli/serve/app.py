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
from klein_cli.serve.page import page
from klein_cli.serve.quick import Quick
from klein_cli.serve.sdapi import StableDiffusion
from klein_cli.serve.service import Service

_NONE = ("upscalers", "latent-upscale-modes", "sd-vae", "sd-modules", "loras", "embeddings")
"""Of /sdapi/v1, what there is to choose from and klein has none of."""


def application(service: Service, rules: Rules, *, stop: Callable[[], None]) -> App:
    """The server as an ASGI application; `stop` ends it, as SIGTERM does."""
    diffusion = StableDiffusion(service)
    health, jobs, images = Health(service), Jobs(service), Images(service)
    routes = [
        Route("/livez", health.live),
        Route("/readyz", health.ready),
        Route("/health", health.ready),
        Route("/metrics", health.metrics),
        Route("/klein/v1/hello", jobs.hello),
        Route("/klein/v1/model", jobs.model),
        Route("/klein/v1/status", jobs.status),
        Route("/klein/v1/draw", jobs.draw, methods=["POST"]),
        Route("/klein/v1/quick", Quick(service).draw, methods=["POST"]),
        Route("/klein/v1/unload", jobs.unload, methods=["POST"]),
        Route("/klein/v1/stop", jobs.stop, methods=["POST"]),
        Route("/v1/jobs/{job}", jobs.cancel, methods=["DELETE"]),
        Route("/v1/models", images.models),
        Route("/v1/models/{name:path}", images.model),
        Route("/v1/images/generations", images.generations, methods=["POST"]),
        Route("/v1/images/edits", images.edits, methods=["POST"]),
        Route("/v1/images/files/{name}", images.kept),
        Route("/sdapi/v1/txt2img", diffusion.txt2img, methods=["POST"]),
        Route("/sdapi/v1/img2img", diffusion.img2img, methods=["POST"]),
        Route("/sdapi/v1/progress", diffusion.progress),
        Route("/sdapi/v1/interrupt", diffusion.interrupt, methods=["POST"]),
        Route("/sdapi/v1/options", diffusion.options, methods=["GET", "POST"]),
        Route("/sdapi/v1/sd-models", diffusion.models),
        Route("/sdapi/v1/samplers", diffusion.samplers),
        Route("/sdapi/v1/schedulers", diffusion.schedulers),
        *(Route(f"/sdapi/v1/{name}", diffusion.none) for name in _NONE),
        Route("/", page),
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
