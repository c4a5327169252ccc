"""An engine: a process of klein's that holds the model on one GPU, seen from the front's loop.

It is the same process that `--workers` uses, over the same messages. Ending it is how memory is
given back: a GPU's context stays with a process for as long as that lives.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Protocol

from klein_cli.run.executors.pool import WorkerLost
from klein_cli.run.executors.process import WorkerProcess
from klein_cli.run.executors.worker import (
    CancelRequest,
    Drawn,
    DrawRequest,
    Failure,
    LoadRequest,
    Stepped,
    WorkerInfo,
)

OnStep = Callable[[Stepped], None]


class EngineDied(Exception):
    """The engine's process ended by itself; the message is the last that is known of it."""


class Engine(Protocol):
    """What draws, one batch at a time. Coroutines raise EngineDied."""

    async def load(self) -> WorkerInfo:
        """Start it, and get the model ready. Raises the error of a model that cannot be."""

    async def draw(self, request: DrawRequest, on_step: OnStep) -> Drawn:
        """The images of a batch; `on_step` hears of its steps."""

    def cancel(self, number: int) -> None:
        """Have the batch of this number end after its next step."""

    async def close(self) -> None:
        """End it; all its memory is free after this."""


class ChildEngine:
    """See `Engine`: a child that sees `gpu` alone, or what this process sees if that is None."""

    def __init__(self, request: LoadRequest, gpu: str | None = None) -> None:
        self._request = request
        self._gpu = gpu
        self._link: WorkerProcess | None = None
        self._reader: threading.Thread | None = None
        self._answer: asyncio.Future[WorkerInfo | Drawn | Failure] | None = None
        self._on_step: OnStep | None = None
        self._lost: str | None = None

    async def load(self) -> WorkerInfo:
        # In the loop's thread, which lives as long as the process: the child dies with it.
        self._link = WorkerProcess(self._gpu)
        self._reader = threading.Thread(
            target=self._read, args=(self._link, asyncio.get_running_loop()), daemon=True
        )
        self._reader.start()
        answer = await self._asked(self._request)
        if isinstance(answer, Failure):
            raise answer.exception()
        assert isinstance(answer, WorkerInfo)
        return answer

    async def draw(self, request: DrawRequest, on_step: OnStep) -> Drawn:
        self._on_step = on_step
        answer = await self._asked(request)
        assert isinstance(answer, Drawn)
        return answer

    def cancel(self, number: int) -> None:
        if self._link is not None:
            self._link.send(CancelRequest(number=number))

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.hang_up()
            await asyncio.to_thread(self._end, link)

    def _end(self, link: WorkerProcess) -> None:
        assert self._reader is not None
        self._reader.join()
        link.kill()
        link.wait()

    async def _asked(self, request: LoadRequest | DrawRequest) -> WorkerInfo | Drawn | Failure:
        assert self._link is not None
        if self._lost is not None:
            raise EngineDied(self._lost)
        self._answer = asyncio.get_running_loop().create_future()
        # In a thread: the files of a batch may be larger than what a socket holds.
        await asyncio.to_thread(self._link.send, request)
        return await self._answer

    def _read(self, link: WorkerProcess, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            try:
                message = link.message()
            except WorkerLost as error:
                loop.call_soon_threadsafe(self._ended, str(error))
                return
            loop.call_soon_threadsafe(self._heard, message)

    def _heard(self, message: WorkerInfo | Stepped | Drawn | Failure) -> None:
        if isinstance(message, Stepped):
            if self._on_step is not None:
                self._on_step(message)
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(message)

    def _ended(self, last_words: str) -> None:
        self._lost = last_words
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(EngineDied(last_words))
