"""The part of A1111's API that SillyTavern, Open WebUI and LibreChat call: /sdapi/v1.

What it takes of a request is put in OpenAI's words and goes their way; nothing in it loads or
fetches anything, `override_settings` least of all.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from klein_cli.output.metadata import parameters
from klein_cli.serve.drawing import Drawing, Finished
from klein_cli.serve.errors import ApiError
from klein_cli.serve.fields import Asked, parse
from klein_cli.serve.openai import while_there
from klein_cli.serve.openai_body import json_body
from klein_cli.serve.service import Service

_SAME = ("prompt", "negative_prompt", "seed", "steps", "width", "height", "cfg_scale")
_MOST = 10
_SEEN_TO = ("batch_size", "n_iter", "send_images")
_OPENAIS_ALONE = ("stream", "partial_images", "progress", "response_format")
_SAMPLER = "Euler"


class StableDiffusion:
    """The routes under /sdapi/v1. Whose progress, and whose image is broken off, is by client."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._progress: dict[str, tuple[Drawing, float]] = {}

    async def txt2img(self, request: Request) -> JSONResponse:
        """Images from words."""
        body = await json_body(request)
        asked = parse(_in_openais_words(body), self._service.served, own=_SEEN_TO)
        await self._service.lengths.check(asked)
        client, steps = _client(request), max(1, asked.recipes[0].steps)
        count = len(asked.recipes)

        def looked(look: Any) -> None:
            done = (look.index + look.step / steps) / count
            self._progress[client] = drawing, done

        drawing = Drawing(
            self._service.dispatcher,
            asked.recipes,
            job=request.state.request_id,
            bulk=asked.bulk,
            wait=asked.timeout,
            watched=True,
            on_look=looked,
        )
        self._progress[client] = drawing, 0.0
        try:
            finished = await while_there(request, drawing, _all(drawing, asked))
        finally:
            if self._progress.get(client, (None,))[0] is drawing:
                del self._progress[client]
        return JSONResponse(_reply(body, asked, finished))

    async def img2img(self, request: Request) -> JSONResponse:
        """Not in klein: its models edit, they do not begin in the middle."""
        raise ApiError(
            501, "img2img is not available: POST /v1/images/edits edits an image by words"
        )

    async def progress(self, request: Request) -> JSONResponse:
        """How far the image of the client that asks is."""
        _, done = self._progress.get(_client(request), (None, 0.0))
        state = {"job_count": len(self._progress), "sampling_step": 0, "sampling_steps": 0}
        return JSONResponse(
            {"progress": done, "eta_relative": 0.0, "state": state, "current_image": None}
        )

    async def interrupt(self, request: Request) -> JSONResponse:
        """Break off the image of the client that asks, and nobody else's."""
        drawing, _ = self._progress.get(_client(request), (None, 0.0))
        if drawing is not None:
            drawing.cancel("asked")
        return JSONResponse({})

    async def options(self, request: Request) -> JSONResponse:
        """GET: what is there. POST: nothing is changed, and that is all that is said."""
        return JSONResponse({"sd_model_checkpoint": self._service.served.preset.name})

    async def models(self, request: Request) -> JSONResponse:
        """The one model."""
        name = self._service.served.preset.name
        known = {"title": name, "model_name": name, "hash": None, "sha256": None}
        return JSONResponse([{**known, "filename": name, "config": None}])

    async def samplers(self, request: Request) -> JSONResponse:
        """The one way from noise to an image."""
        return JSONResponse([{"name": _SAMPLER, "aliases": ["euler"], "options": {}}])

    async def schedulers(self, request: Request) -> JSONResponse:
        """The model's own noise levels."""
        return JSONResponse([{"name": "automatic", "label": "Automatic", "aliases": None}])

    async def none(self, request: Request) -> JSONResponse:
        """Upscalers, VAEs, LoRAs: there are none to choose."""
        return JSONResponse([])


def _in_openais_words(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request's fields by the names that `parse` knows. Raises ApiError."""
    said = {name: body[name] for name in _SAME if body.get(name) is not None}
    counts = [body.get(name) or 1 for name in ("batch_size", "n_iter")]
    if not all(isinstance(count, int) and 1 <= count <= _MOST for count in counts):
        raise ApiError(400, f"batch_size and n_iter are whole numbers, {_MOST} at most together")
    for name in _OPENAIS_ALONE:
        if body.get(name):
            raise ApiError(400, f"{name} is not available here: /v1/images has it", param=name)
    others = {name: value for name, value in body.items() if name not in _SAME}
    return {**others, **said, "n": counts[0] * counts[1]}


async def _all(drawing: Drawing, asked: Asked) -> list[Finished]:
    kind, quality = asked.extension, asked.quality_of_file
    return [await drawing.finished(index, kind, quality) for index in range(len(asked.recipes))]


def _reply(body: Mapping[str, Any], asked: Asked, finished: list[Finished]) -> dict[str, Any]:
    first = finished[0].recipe
    info = {
        "prompt": first.prompt,
        "negative_prompt": first.negative_prompt or "",
        "seed": first.seed,
        "all_seeds": [each.recipe.seed for each in finished],
        "width": first.width,
        "height": first.height,
        "steps": first.steps,
        "cfg_scale": first.guidance,
        "sampler_name": _SAMPLER,
        "sd_model_name": first.model,
        "infotexts": [parameters(each.recipe) for each in finished],
        "warnings": asked.warnings,
    }
    images = [base64.b64encode(each.data).decode() for each in finished]
    sent = images if body.get("send_images", True) else []
    return {"images": sent, "parameters": dict(body), "info": json.dumps(info)}


def _client(request: Request) -> str:
    """Who asks: whoever has the same address and, if there is one, the same key."""
    host = request.client.host if request.client else "owner"
    return f"{host} {request.headers.get('authorization', '')}"
