"""From the line to the engines: who is drawn when, and what becomes of it.

An engine is started when somebody waits, ends when nobody has for a while (`keep_alive`), and is
started anew when it dies, with the image that it had in hand given out once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from klein_cli.errors import CancelledError, KleinError
from klein_cli.run.executors.executor import WorkerDied
from klein_cli.run.executors.worker import Drawn, Stepped, WorkerInfo
from klein_cli.serve.engine import Engine, EngineDied
from klein_cli.serve.line import Line, LineFull, Stopping, Ticket, TooLate
from klein_cli.serve.log import Log
from klein_cli.serve.metrics import Metrics

_MOST_RETRY = 120
"""Seconds: clients do not wait longer before they ask again."""

_GIVEN_OUT = 2
"""How often one batch is drawn when engines die over it."""

_SMOOTHING = 0.2


@dataclass(slots=True)
class _Seat:
    """An engine's place: whether it is loaded, and what it draws."""

    engine: Engine
    loaded: bool = False
    drawing: Ticket | None = None


@dataclass(slots=True)
class _State:
    """What is known of the engines together; `error` is of the last that could not be loaded."""

    info: WorkerInfo | None = None
    error: KleinError | None = None
    seconds: float = 1.0
    lazy: bool = False
    stopping: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Dispatcher:
    """Draws what waits in a `line`, with as many engines as there are ways to make one.

    `keep_alive` is in seconds, None for ever. All methods belong to the loop's thread.
    """

    def __init__(
        self,
        engines: Sequence[Callable[[], Engine]],
        *,
        line: Line,
        metrics: Metrics,
        log: Log,
        keep_alive: float | None = None,
    ) -> None:
        self._make = engines
        self._line = line
        self._metrics = metrics
        self._log = log
        self._keep_alive = keep_alive
        self._seats: list[_Seat] = []
        self._changed = asyncio.Condition()
        self._state = _State()
        self._warming = asyncio.Event()
        self._notices: set[asyncio.Task[None]] = set()

    async def start(self, *, load: bool) -> None:
        """Begin. With `load`, wait until an engine is ready, or raise why none can be; otherwise
        the first request waits for that.
        """
        self._state.lazy = not load
        self._seats = [_Seat(make()) for make in self._make]
        self._state.tasks = [
            asyncio.create_task(self._work(seat, make, load=load))
            for seat, make in zip(self._seats, self._make, strict=True)
        ]
        if load:
            await self._warming.wait()
            if self._state.info is None and self._state.error is not None:
                raise self._state.error

    @property
    def info(self) -> WorkerInfo | None:
        """How the engines compute, once one has been loaded."""
        return self._state.info

    @property
    def ready(self) -> bool:
        """Whether what is asked for now will be drawn."""
        state = self._state
        return (state.info is not None or state.lazy) and not state.stopping

    @property
    def error(self) -> KleinError | None:
        """Why the last engine that was started could not be loaded."""
        return self._state.error

    @property
    def stopping(self) -> bool:
        """Whether nothing new is taken."""
        return self._state.stopping

    @property
    def loaded(self) -> int:
        """How many engines hold the model."""
        return sum(seat.loaded for seat in self._seats)

    @property
    def engines(self) -> int:
        """How many engines there may be."""
        return len(self._make)

    @property
    def drawing(self) -> list[Ticket]:
        """What is being drawn."""
        return [seat.drawing for seat in self._seats if seat.drawing is not None]

    @property
    def waiting(self) -> list[Ticket]:
        """What waits, in order."""
        return list(self._line)

    def place(self, ticket: Ticket) -> int:
        """See `Line.place`."""
        return self._line.place(ticket)

    def put(self, tickets: Sequence[Ticket]) -> None:
        """Have these drawn. Raises LineFull or Stopping, and takes none of them then."""
        if self._state.stopping:
            raise Stopping
        idle = sum(seat.drawing is None for seat in self._seats)
        if not self._line.room_for(len(tickets) - min(idle, len(tickets))):
            self._metrics.count("klein_rejected_total")
            raise LineFull(len(self._line) + 1, self.retry_after(len(self._line)))
        for ticket in tickets:
            self._line.put(ticket)
            asyncio.get_running_loop().call_at(ticket.until, self._expire, ticket)
        self._notify()

    def retry_after(self, ahead: int) -> int:
        """Whole seconds until there is likely to be room, from how long images have taken."""
        expected = (ahead + len(self.drawing)) * self._state.seconds / max(1, len(self._make))
        return max(1, min(_MOST_RETRY, math.ceil(expected)))

    def cancel(self, ticket: Ticket, why: str) -> bool:
        """Break off what nobody waits for any more; whether there was anything to break off."""
        if ticket.result.done() or ticket.cancelled:
            return False
        ticket.cancelled = why
        self._metrics.count("klein_cancelled_total", why=why)
        if self._line.remove(ticket):
            _fail(ticket, CancelledError("the image was cancelled", "ask for it again"))
            return True
        for seat in self._seats:
            if seat.drawing is ticket:
                seat.engine.cancel(ticket.number)
        return True

    def cancel_job(self, job: str, why: str) -> bool:
        """Break off all of one request; whether there was anything of it."""
        mine = [each for each in [*self.drawing, *self._line] if each.job == job]
        cancelled = [self.cancel(ticket, why) for ticket in mine]
        return any(cancelled)

    async def stop(self, patience: float) -> None:
        """Refuse what is new, let go of who waits, finish what is in hand, and end the engines."""
        self._state.stopping = True
        self._warming.set()
        for ticket in list(self._line):
            self._line.remove(ticket)
            _fail(ticket, Stopping())
        results = [ticket.result for ticket in self.drawing]
        if results:
            await asyncio.wait(results, timeout=patience)
        for task in self._state.tasks:
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
        for seat in self._seats:
            if seat.drawing is not None:
                _fail(seat.drawing, Stopping())
            await seat.engine.close()
            seat.loaded = False

    async def unload(self) -> None:
        """End the engines that have nothing to draw."""
        for seat, make in zip(self._seats, self._make, strict=True):
            if seat.loaded and seat.drawing is None:
                await self._renew(seat, make)

    def _notify(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(notify())
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)

    def _expire(self, ticket: Ticket) -> None:
        if self._line.remove(ticket):
            self._metrics.count("klein_cancelled_total", why="deadline")
            _fail(ticket, TooLate())

    async def _work(self, seat: _Seat, make: Callable[[], Engine], *, load: bool) -> None:
        """One engine's life."""
        if load:
            await self._load(seat, make, None)
            self._warming.set()
        while True:
            ticket = await self._next(seat)
            if ticket is None:
                self._log.event("unloaded", reason="idle")
                await self._renew(seat, make)
            else:
                await self._serve(seat, make, ticket)
            seat.drawing = None

    async def _serve(self, seat: _Seat, make: Callable[[], Engine], ticket: Ticket) -> None:
        try:
            if seat.loaded or await self._load(seat, make, ticket):
                await self._draw(seat, make, ticket)
        except Exception as error:  # a bug, which must not end the engine's life
            self._log.event("bug", job=ticket.job, error=f"{type(error).__name__}: {error}")
            _fail(ticket, _reason(error))
            await self._renew(seat, make)

    async def _next(self, seat: _Seat) -> Ticket | None:
        """The next batch for this engine, None if there has been none for long."""
        async with self._changed:
            waited = self._changed.wait_for(lambda: self._is_mine(seat))
            try:
                await asyncio.wait_for(waited, self._keep_alive if seat.loaded else None)
            except TimeoutError:
                return None
            ticket = self._line.take()
            seat.drawing, ticket.begun = ticket, asyncio.get_running_loop().time()
            return ticket

    def _is_mine(self, seat: _Seat) -> bool:
        """Whether this engine is to draw next: one that is loaded, before one that is not."""
        idle = sum(each.loaded and each.drawing is None for each in self._seats)
        return len(self._line) > (0 if seat.loaded else idle)

    async def _load(self, seat: _Seat, make: Callable[[], Engine], ticket: Ticket | None) -> bool:
        """Whether the engine is ready; what waits for it is told if it is not."""
        self._log.event("loading")
        try:
            self._state.info = await seat.engine.load()
        except (EngineDied, KleinError, OSError, RuntimeError) as error:
            await self._renew(seat, make)
            self._state.error = _reason(error)
            self._log.event("load-failed", error=self._state.error.message)
            if ticket is not None and isinstance(error, EngineDied):
                self._again(ticket)
            elif ticket is not None:
                _fail(ticket, self._state.error)
            return False
        self._state.error = None
        seat.loaded = True
        self._log.event("loaded")
        return True

    async def _draw(self, seat: _Seat, make: Callable[[], Engine], ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        assert ticket.begun is not None
        self._metrics.observe("klein_wait_seconds", ticket.begun - ticket.since)
        if ticket.cancelled:  # while the engine was loading
            _fail(ticket, CancelledError("the image was cancelled", "ask for it again"))
            return
        try:
            drawn = await seat.engine.draw(ticket.request, self._follow(ticket, loop.time()))
        except EngineDied as error:
            self._metrics.count("klein_engine_deaths_total")
            self._log.event("engine-died", job=ticket.job, error=str(error))
            await self._renew(seat, make)
            self._again(ticket)
            return
        self._conclude(ticket, drawn, loop.time() - ticket.begun)

    def _follow(self, ticket: Ticket, begun: float) -> Callable[[Stepped], None]:
        loop, before = asyncio.get_running_loop(), [begun]

        def stepped(step: Stepped) -> None:
            now = loop.time()
            self._metrics.observe("klein_step_seconds", now - before[0])
            before[0] = now
            if ticket.on_step is not None and step.number == ticket.number:
                ticket.on_step(step)

        return stepped

    def _again(self, ticket: Ticket) -> None:
        """Give out once more what an engine had in hand when it died."""
        ticket.deaths += 1
        if ticket.cancelled or self._state.stopping or ticket.deaths >= _GIVEN_OUT:
            _fail(ticket, WorkerDied(drawing=True))
        else:
            self._line.put(ticket, first=True)
            self._notify()

    def _conclude(self, ticket: Ticket, drawn: Drawn, seconds: float) -> None:
        first = ticket.request.recipes[0]
        if drawn.failure is None:
            self._metrics.count("klein_images_total", len(drawn.images), model=first.model)
            size = f"{first.width}x{first.height}"
            self._metrics.observe("klein_image_seconds", drawn.seconds, size=size)
            self._state.seconds += _SMOOTHING * (seconds - self._state.seconds)
        if not ticket.result.done():
            ticket.result.set_result(drawn)

    async def _renew(self, seat: _Seat, make: Callable[[], Engine]) -> None:
        """Another engine in the place of one that died, or has nothing to do; not loaded yet."""
        seat.loaded = False
        engine, seat.engine = seat.engine, make()
        with contextlib.suppress(OSError):
            await engine.close()


def _fail(ticket: Ticket, error: KleinError) -> None:
    if not ticket.result.done():
        ticket.result.set_exception(error)
        # Who asked may have gone: nobody need look at it.
        ticket.result.exception()


def _reason(error: Exception) -> KleinError:
    if isinstance(error, KleinError):
        return error
    return KleinError(f"the engine could not be started: {error}", "look at its last lines above")
