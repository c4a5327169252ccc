"""klein's own routes: for its command line, which compares itself with the engine and draws."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from klein_cli.recipe import recorded_model
from klein_cli.run.executors import wire
from klein_cli.run.executors.worker import Drawn, DrawRequest, Failure, Stepped
from klein_cli.run.resident.finding import PROTOCOL
from klein_cli.serve.drawing import WAIT
from klein_cli.serve.errors import ApiError
from klein_cli.serve.guard import OWNER
from klein_cli.serve.line import LineFull, Stopping, Ticket
from klein_cli.serve.service import Service

CONTENT_TYPE = "application/x-klein"
_MAX_BATCH = 64


class Jobs:
    """The routes under /klein/v1, and those of jobs."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def hello(self, request: Request) -> JSONResponse:
        """What a client needs to know before it lets the engine draw."""
        service, info = self._service, self._service.dispatcher.info
        origin = None
        if info is not None:
            origin = {
                "model": recorded_model(info.origin.model),
                "settings": asdict(info.origin.settings),
                "provenance": dict(info.origin.provenance),
            }
        said = {
            "protocol": PROTOCOL,
            "model": service.model,
            "settings": asdict(service.settings),
            "facts": dict(service.facts) if request.state.klein_owner else {},
            "origin": origin,
            "batch_size": None if info is None else info.batch_size,
            "engines": service.dispatcher.engines,
            "pid": os.getpid(),
        }
        return JSONResponse(said)

    async def model(self, request: Request) -> JSONResponse:
        """What the page needs to know of the model. Sides in pixels."""
        preset = self._service.served.preset
        names = ("name", "width", "height", "min_side", "max_side", "steps", "guidance")
        return JSONResponse({name: getattr(preset, name) for name in (*names, "distilled")})

    async def status(self, request: Request) -> JSONResponse:
        """What is loaded, what is drawn and what waits: for `klein ps`. No prompts."""
        service = self._service
        dispatcher, now = service.dispatcher, asyncio.get_running_loop().time()
        jobs = [_row(ticket, 0, now) for ticket in dispatcher.drawing]
        jobs += [_row(ticket, place, now) for place, ticket in enumerate(dispatcher.waiting, 1)]
        return JSONResponse(
            {
                "model": service.model,
                "pid": os.getpid(),
                "up": round(time.time() - service.started, 1),
                "ready": dispatcher.ready,
                "engines": dispatcher.engines,
                "loaded": dispatcher.loaded,
                "jobs": jobs,
            }
        )

    async def cancel(self, request: Request) -> JSONResponse:
        """DELETE of a job by its id."""
        job = request.path_params["job"]
        if not self._service.dispatcher.cancel_job(job, "asked"):
            raise ApiError(404, "there is no such job, or it is finished")
        return JSONResponse({"id": job, "cancelled": True})

    async def unload(self, request: Request) -> JSONResponse:
        """Give the GPU back; the next request loads the model again."""
        await self._service.dispatcher.unload()
        return JSONResponse({"loaded": self._service.dispatcher.loaded})

    async def stop(self, request: Request) -> JSONResponse:
        """End the server as SIGTERM does; for its owner alone."""
        if not getattr(request.state, OWNER, False):
            raise ApiError(403, "only its owner may stop the server, over its socket")
        asyncio.get_running_loop().call_later(0.05, request.app.state.stop)
        return JSONResponse({"stopping": True, "pid": os.getpid()})

    async def draw(self, request: Request) -> Response:
        """A batch as klein's processes ask for it; steps as they are done, then the pixels."""
        asked = _asked(await request.body(), is_owner=bool(request.state.klein_owner))
        ticket = self._ticket(asked, request)
        heard: asyncio.Queue[Stepped | None] = asyncio.Queue()
        if asked.watched:
            ticket.on_step = heard.put_nowait
        ticket.result.add_done_callback(lambda _: heard.put_nowait(None))
        try:
            self._service.dispatcher.put([ticket])
        except LineFull as error:
            raise ApiError.of(error) from None
        return StreamingResponse(self._messages(ticket, heard), media_type=CONTENT_TYPE)

    def _ticket(self, asked: DrawRequest, request: Request) -> Ticket:
        loop = asyncio.get_running_loop()
        ticket = Ticket(
            request=asked,
            bulk=request.query_params.get("class") == "bulk",
            result=loop.create_future(),
            until=loop.time() + WAIT,
            since=loop.time(),
            job=request.state.request_id,
        )
        ticket.request = replace(asked, number=ticket.number, previews=0)
        return ticket

    async def _messages(
        self, ticket: Ticket, heard: asyncio.Queue[Stepped | None]
    ) -> AsyncIterator[bytes]:
        try:
            while (step := await heard.get()) is not None:
                yield b"".join(wire.encoded(step))
            try:
                answer = await asyncio.shield(ticket.result)
            except Stopping:
                return  # the client asks again, of whoever comes after
            except Exception as error:
                answer = Drawn(images=[], failure=Failure.of(error), seconds=0.0)
            for piece in wire.encoded(answer):
                yield bytes(piece)
        finally:
            self._service.dispatcher.cancel(ticket, "left")


def _asked(body: bytes, *, is_owner: bool) -> DrawRequest:
    """A batch from its bytes. Raises ApiError."""
    try:
        message = wire.decoded(body)
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise ApiError(400, f"this is not a batch: {str(error)[:200]}") from None
    if not isinstance(message, DrawRequest) or not 1 <= len(message.recipes) <= _MAX_BATCH:
        raise ApiError(400, f"this is not a batch of 1 to {_MAX_BATCH} recipes")
    named = any(file.path is not None or file.stands_in for file in message.files)
    if not is_owner and (named or message.adapters):
        raise ApiError(403, "only its owner may name files of the engine's machine")
    if len({recipe.shape for recipe in message.recipes}) != 1:
        raise ApiError(400, "the recipes of a batch differ in shape")
    return message


def _row(ticket: Ticket, place: int, now: float) -> dict[str, Any]:
    first = ticket.request.recipes[0]
    return {
        "id": ticket.job,
        "state": "waiting" if place else "drawing",
        "place": place,
        "class": "bulk" if ticket.bulk else "single",
        "images": len(ticket.request.recipes),
        "size": f"{first.width}x{first.height}",
        "seconds": round(now - (ticket.begun or ticket.since), 1),
    }
