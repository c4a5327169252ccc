"""OpenAI's Images API: JSON in, an image or a stream of events out."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from klein_cli.recipe import recorded
from klein_cli.run.executors.files import SentFile
from klein_cli.serve.drawing import Drawing, Finished, Look, encoded
from klein_cli.serve.errors import ApiError
from klein_cli.serve.fields import Asked, parse
from klein_cli.serve.kept import KeptFiles
from klein_cli.serve.openai_body import json_body
from klein_cli.serve.service import Service
from klein_cli.serve.uploads import OWN, Decoders, edit_body

_PING = 15.0
"""Seconds without an event after which a comment keeps a stream open."""
_MEDIA = {".png": "png", ".jpg": "jpeg", ".webp": "webp"}


class Images:
    """The routes of /v1/images and /v1/models."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._kept = KeptFiles()
        self._decoders = Decoders()

    async def models(self, request: Request) -> JSONResponse:
        """What is served: one model, by its names."""
        data = [self._model(name) for name in self._service.served.names]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> JSONResponse:
        """One of these names."""
        name = request.path_params["name"]
        if name not in self._service.served.names:
            raise ApiError(404, f"there is no model {name[:100]!r} here", code="model_not_found")
        return JSONResponse(self._model(name))

    async def generations(self, request: Request) -> Response:
        """Images from words."""
        asked = parse(await json_body(request), self._service.served)
        return await self._answer(request, asked, "image_generation")

    async def edits(self, request: Request) -> Response:
        """Images from words and images."""
        body, sent = await edit_body(request)
        inputs, files = await self._decoders.trusted(sent)
        asked = parse(body, self._service.served, own=OWN, inputs=inputs)
        return await self._answer(request, asked, "image_edit", files)

    async def kept(self, request: Request) -> Response:
        """An image that was given out as a URL."""
        found = self._kept.get(request.path_params["name"])
        if found is None:
            raise ApiError(404, "there is no such image, or its time is over")
        data, extension = found
        return Response(data, media_type=f"image/{_MEDIA[extension]}")

    def _model(self, name: str) -> dict[str, Any]:
        created = int(self._service.started)
        return {"id": name, "object": "model", "created": created, "owned_by": "klein"}

    async def _answer(
        self, request: Request, asked: Asked, kind: str, files: Sequence[SentFile] = ()
    ) -> Response:
        await self._service.lengths.check(asked)
        heard: asyncio.Queue[Look] = asyncio.Queue()
        drawing = Drawing(
            self._service.dispatcher,
            asked.recipes,
            files=files,
            job=request.state.request_id,
            bulk=asked.bulk,
            wait=asked.timeout,
            watched=asked.stream,
            previews=asked.partial_images if asked.stream else 0,
            on_look=heard.put_nowait,
        )
        if asked.stream:
            events = self._events(drawing, asked, kind, heard)
            return StreamingResponse(events, media_type="text/event-stream")
        finished = await while_there(request, drawing, self._all(drawing, asked))
        return JSONResponse(self._reply(request, asked, finished))

    async def _all(self, drawing: Drawing, asked: Asked) -> list[Finished]:
        return list(await asyncio.gather(*_finishing(drawing, asked)))

    def _reply(self, request: Request, asked: Asked, finished: list[Finished]) -> dict[str, Any]:
        data = []
        for each in finished:
            entry: dict[str, Any] = {"seed": each.recipe.seed, "recipe": recorded(each.recipe)}
            if asked.as_url:
                name = self._kept.put(each.data, asked.extension)
                entry["url"] = str(request.base_url) + f"v1/images/files/{name}"
            else:
                entry["b64_json"] = base64.b64encode(each.data).decode()
            data.append(entry)
        return {
            "created": int(time.time()),
            "id": request.state.request_id,
            "model": self._service.served.preset.name,
            "data": data,
            **self._facts(asked),
            "size": finished[0].size,
            "warnings": asked.warnings,
        }

    def _facts(self, asked: Asked) -> dict[str, str]:
        first = asked.recipes[0]
        return {
            "background": "opaque",
            "output_format": _MEDIA[asked.extension],
            "quality": asked.quality,
            "size": f"{first.width}x{first.height}",
        }

    async def _events(
        self, drawing: Drawing, asked: Asked, kind: str, heard: asyncio.Queue[Look]
    ) -> AsyncIterator[str]:
        """Server-sent events. Nothing but OpenAI's own unless `progress` was asked for."""
        finishing = [asyncio.ensure_future(each) for each in _finishing(drawing, asked)]
        seen = [0] * len(asked.recipes)
        facts = {"created_at": int(time.time()), **self._facts(asked)}
        try:
            if asked.progress:
                yield _event("klein.queued", job=drawing.tickets[0].job, place=drawing.place)
            pending: set[asyncio.Future[Finished]] = set(finishing)
            while pending or not heard.empty():
                look = await _next(heard, pending)
                if look is not None:
                    if asked.progress:
                        steps = {"step": look.step, "steps": look.steps}
                        yield _event("klein.step", image_index=look.index, **steps)
                    if look.pixels is not None:
                        given = await self._partial(look, asked)
                        number, seen[look.index] = seen[look.index], seen[look.index] + 1
                        indices = {"partial_image_index": number, "image_index": look.index}
                        yield _event(f"{kind}.partial_image", b64_json=given, **indices, **facts)
                elif pending and not any(each.done() for each in pending):
                    place = drawing.place
                    waits = _event("klein.queued", job=drawing.tickets[0].job, place=place)
                    yield waits if asked.progress else f": number {place} in the line\n\n"
                for index, each in enumerate(finishing):
                    if each in pending and each.done() and heard.empty():
                        pending.discard(each)
                        yield _completed(kind, index, each.result(), asked, facts)
        except Exception as error:
            yield f"data: {json.dumps(ApiError.of(error).body)}\n\n"
        finally:
            drawing.cancel("left")
            for each in finishing:
                each.cancel()

    async def _partial(self, look: Look, asked: Asked) -> str:
        assert look.pixels is not None
        data = await encoded(
            look.pixels, asked.extension, None, asked.recipes[look.index], asked.quality_of_file
        )
        return base64.b64encode(data).decode()


def _finishing(drawing: Drawing, asked: Asked) -> list[Coroutine[Any, Any, Finished]]:
    count = len(asked.recipes)
    kind, quality = asked.extension, asked.quality_of_file
    return [drawing.finished(index, kind, quality) for index in range(count)]


async def while_there(request: Request, drawing: Drawing, work: Any) -> Any:
    """What `work` comes to, for as long as the client is there; it is broken off when it leaves."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            drawing.cancel("left")
        return await task
    finally:
        drawing.cancel("left")
        for each in (task, gone):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _next(heard: asyncio.Queue[Look], pending: set[asyncio.Future[Finished]]) -> Look | None:
    """The next look at an image; None when one is finished before, or nothing is heard for long."""
    if not heard.empty():
        return heard.get_nowait()
    getting = asyncio.ensure_future(heard.get())
    try:
        both: set[asyncio.Future[Any]] = {getting, *pending}
        await asyncio.wait(both, timeout=_PING, return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else None
    finally:
        getting.cancel()


def _completed(
    kind: str, index: int, finished: Finished, asked: Asked, facts: Mapping[str, Any]
) -> str:
    return _event(
        f"{kind}.completed",
        b64_json=base64.b64encode(finished.data).decode(),
        **{**facts, "size": finished.size},
        image_index=index,
        seed=finished.recipe.seed,
        recipe=recorded(finished.recipe),
        warnings=asked.warnings,
    )


def _event(kind: str, **data: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"
