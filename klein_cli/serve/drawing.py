"""A request's recipes -> finished files: through the line, and encoded beside the drawing.

Memory that runs out is a step down here as in a run: decoded in tiles, which the record says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from klein_cli.errors import OutOfMemoryError
from klein_cli.output.metadata import parameters
from klein_cli.output.png import QUALITY, encode
from klein_cli.recipe import Recipe
from klein_cli.run.batching import Batch
from klein_cli.run.executors.files import SentFile
from klein_cli.run.executors.worker import Drawn, DrawRequest, Stepped
from klein_cli.serve.dispatcher import Dispatcher
from klein_cli.serve.line import Ticket

if TYPE_CHECKING:
    from klein_cli.run.fallback import Pixels

WAIT = 600.0
"""Seconds that an image may wait unless the request says otherwise: as long as clients wait."""
_ENCODERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """An image as a file with its record inside; `size` is WIDTHxHEIGHT in pixels."""

    recipe: Recipe
    data: bytes
    size: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is heard of an image on its way: a step of so many, and perhaps what is seen so far."""

    index: int
    step: int
    steps: int
    pixels: Pixels | None


class Drawing:
    """The images of one request, each a ticket of its own under one `job`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        recipes: Sequence[Recipe],
        *,
        job: str,
        files: Sequence[SentFile] = (),
        bulk: bool = False,
        wait: float | None = None,
        watched: bool = False,
        previews: int = 0,
        on_look: Callable[[Look], None] | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._job = job
        self._files = list(files)
        self._bulk = bulk
        self._on_look = on_look
        self._until = asyncio.get_running_loop().time() + (WAIT if wait is None else wait)
        self._watched = watched or previews > 0
        self._previews = previews
        self.tickets = [
            self._ticket(recipe, index, tiled=False) for index, recipe in enumerate(recipes)
        ]
        dispatcher.put(self.tickets)

    @property
    def place(self) -> int:
        """Of the first that still waits, in the line; 0 for none."""
        places = [self._dispatcher.place(ticket) for ticket in self.tickets]
        return min(filter(None, places), default=0)

    def cancel(self, why: str) -> None:
        """Break off what is not finished."""
        for ticket in self.tickets:
            self._dispatcher.cancel(ticket, why)

    async def pixels(self, index: int) -> tuple[Pixels, str | None]:
        """An image, and what was done differently because memory ran out. Raises its error."""
        ticket = self.tickets[index]
        try:
            return (await _result(ticket)).images[0], None
        except OutOfMemoryError:
            recipe = ticket.request.recipes[0]
        again = self._ticket(recipe, index, tiled=True)
        self.tickets[index] = again
        self._dispatcher.put([again])
        drawn = await _result(again)
        return drawn.images[0], Batch(jobs=(), planned=0, tiled=True).step_down

    async def finished(self, index: int, extension: str, quality: int = QUALITY) -> Finished:
        """An image as a file; see `encode`."""
        pixels, step_down = await self.pixels(index)
        recipe = self.tickets[index].request.recipes[0]
        info = self._dispatcher.info
        assert info is not None
        record = info.origin.record(recipe, step_down)
        data = await encoded(pixels, extension, record, recipe, quality)
        seconds = asyncio.get_running_loop().time() - self.tickets[index].since
        height, width = pixels.shape[:2]
        return Finished(recipe=recipe, data=data, size=f"{width}x{height}", seconds=seconds)

    def _ticket(self, recipe: Recipe, index: int, *, tiled: bool) -> Ticket:
        loop = asyncio.get_running_loop()
        ticket = Ticket(
            request=DrawRequest(recipes=[recipe], tiled=tiled, files=self._files),
            bulk=self._bulk,
            result=loop.create_future(),
            until=self._until,
            since=loop.time(),
            job=self._job,
            on_step=lambda step: self._heard(index, step),
        )
        ticket.request = replace(
            ticket.request,
            number=ticket.number,
            watched=self._watched,
            previews=self._previews,
        )
        return ticket

    def _heard(self, index: int, step: Stepped) -> None:
        if self._on_look is not None:
            pixels = step.images[0] if step.images else None
            self._on_look(Look(index=index, step=step.step, steps=step.steps, pixels=pixels))


async def _result(ticket: Ticket) -> Drawn:
    drawn = await asyncio.shield(ticket.result)
    if drawn.failure is not None:
        raise drawn.failure.exception()
    return drawn


_encoders = ThreadPoolExecutor(_ENCODERS, "klein-encoder")


async def encoded(
    pixels: Pixels,
    extension: str,
    record: dict[str, Any] | None,
    recipe: Recipe,
    quality: int = QUALITY,
) -> bytes:
    """The bytes of an image file, made in a thread: the loop goes on."""
    loop = asyncio.get_running_loop()
    make = partial(encode, pixels, extension, record, parameters(recipe), quality=quality)
    return await loop.run_in_executor(_encoders, make)
