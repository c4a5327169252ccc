"""Whether the server lives, whether it draws, and what it has done: for those who watch it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from klein_cli.serve.metrics import CONTENT_TYPE
from klein_cli.serve.service import Service


class Health:
    """The routes of those who watch."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def live(self, request: Request) -> JSONResponse:
        """200 for as long as the process answers."""
        return JSONResponse({"status": "alive"})

    async def ready(self, request: Request) -> JSONResponse:
        """200 once an engine has been loaded; 503 before, and from the moment it is to stop."""
        dispatcher = self._service.dispatcher
        if dispatcher.ready:
            return JSONResponse({"status": "ok"})
        status = "stopping" if dispatcher.stopping else "loading model"
        said = {"status": status}
        if dispatcher.error is not None:
            said = {"status": "no model", "error": dispatcher.error.message}
        return JSONResponse(said, 503, headers={"retry-after": "5"})

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        service = self._service
        return Response(service.metrics.text(service.gauges()), media_type=CONTENT_TYPE)
