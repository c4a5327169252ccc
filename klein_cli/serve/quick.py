"""A plain `klein generate`, in the words in which it was typed -> the finished file.

For the owner alone. What is not quite plain, or would not be quite the same, is refused, and the
command line then does it in its own way.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from klein_cli.checkpoints.resolve import on_disk
from klein_cli.errors import KleinError
from klein_cli.presets import DEFAULT_MODEL, Preset, presets
from klein_cli.prompts.rows import Defaults, Row, prompt_fault, recipe_of
from klein_cli.prompts.sizes import image_size
from klein_cli.recipe import CPU_SEEDS, Recipe, recorded
from klein_cli.run.resident.facts import hashed, model_facts, settings_differ
from klein_cli.serve.drawing import Drawing
from klein_cli.serve.errors import ApiError
from klein_cli.serve.guard import OWNER
from klein_cli.serve.openai import while_there
from klein_cli.serve.service import Service
from klein_cli.settings import Settings
from klein_cli.text.tokenizer import surely_fits


class Quick:
    """The route of plain command lines."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def draw(self, request: Request) -> Response:
        """The PNG file, with its recipe in a header."""
        if not getattr(request.state, OWNER, False):
            raise ApiError(403, "only its owner draws so")
        said, facts = _read(await request.body())
        recipe = self._recipe(said, facts)
        drawing = Drawing(
            self._service.dispatcher, [recipe], job=request.state.request_id, wait=3600
        )
        finished = await while_there(request, drawing, drawing.finished(0, ".png"))
        told = json.dumps(recorded(recipe))
        return Response(finished.data, media_type="image/png", headers={"x-klein-recipe": told})

    def _recipe(self, said: Mapping[str, str], facts: Mapping[str, str]) -> Recipe:
        """What was asked for. Raises ApiError where the command line itself is to see to it."""
        service, info = self._service, self._service.dispatcher.info
        model = said.get("model", DEFAULT_MODEL)
        if info is None or model != service.model or model not in presets():
            raise _not_plain("the model")
        theirs = {name: service.facts.get(name) for name in facts}
        if dict(facts) != theirs or settings_differ(
            Settings(), service.settings, info.origin.settings
        ):
            raise _not_plain("what it computes with")
        snapshot = on_disk(model)
        if snapshot is None or model_facts(snapshot).items() - service.facts.items():
            raise _not_plain("the model's files")
        if "terminal" in said and not info.origin.settings.device.startswith("cuda"):
            raise _not_plain("a wait that is worth a bar")
        try:
            return _recipe_of(said, service.served.preset)
        except (KleinError, ValueError):
            raise _not_plain("the words") from None


def _recipe_of(said: Mapping[str, str], preset: Preset) -> Recipe:
    """Raises KleinError or ValueError."""
    prompt = said["prompt"]
    if prompt_fault(prompt) or not surely_fits(
        prompt
    ):  # of whose length there may be something to say
        raise ValueError(prompt)
    numbers = {name: _whole(said.get(name)) for name in ("seed", "width", "height", "steps")}
    seed = secrets.randbelow(CPU_SEEDS) if numbers["seed"] is None else numbers["seed"]
    if seed >= CPU_SEEDS:  # of which there is something to say
        raise ValueError(seed)
    width, height = image_size(
        preset,
        width=numbers["width"],
        height=numbers["height"],
        size=said.get("size"),
        aspect=None,
    )
    row = Row(prompt=prompt, width=width, height=height, steps=numbers["steps"])
    return recipe_of(row, Defaults(preset=preset), seed)


def _read(body: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """What was said, and the facts of who said it. Raises ApiError."""
    try:
        words, _, facts = body.decode("utf-8").partition("\0\0")
    except UnicodeDecodeError:
        raise _not_plain("the words") from None
    said = dict(pair.split("=", 1) for pair in words.split("\0") if "=" in pair)
    tables = [each.split("\n") for each in facts.split("\0")]
    return said, {name: hashed(lines) for name, *lines in tables}


def _whole(text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return None if text is None else int(text)


def _not_plain(what: str) -> ApiError:
    return ApiError(409, f"not here: {what}")
