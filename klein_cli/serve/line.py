"""The line of those who wait for an image: single images before bulk, and none starved.

Pure: no clock and no loop of its own. Inside a class, first come is first served.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from klein_cli.errors import KleinError
from klein_cli.run.executors.worker import Drawn, DrawRequest, Stepped

LIMIT = 64
_SINGLE_IN_A_ROW = 4
"""After so many single images one of a bulk run is drawn, if one waits."""

_numbers = itertools.count(1)


class LineFull(KleinError):
    """So many wait that another must come back later: in `retry_after` seconds, at this `place`."""

    def __init__(self, place: int, retry_after: int) -> None:
        super().__init__(f"{place - 1} images wait already", f"ask again in {retry_after} s")
        self.place = place
        self.retry_after = retry_after


class Stopping(KleinError):
    """The server is about to end."""

    def __init__(self) -> None:
        super().__init__("the engine is stopping", "ask again when it has started anew")


class TooLate(KleinError):
    """An image waited longer than whoever asked for it wants to wait."""

    def __init__(self) -> None:
        super().__init__("the image was not begun in time", "ask again when there is less to do")


@dataclass(eq=False, slots=True, kw_only=True)
class Ticket:
    """A batch that somebody waits for, and its result, which is set once.

    Those of one request share a `job`. `until` is when, on the loop's clock, nobody waits any more.
    `on_step` hears of steps; `deaths` counts the engines that died over it. `cancelled` says why,
    "" if it is not.
    """

    request: DrawRequest
    bulk: bool
    result: asyncio.Future[Drawn]
    until: float
    since: float
    job: str = field(default_factory=lambda: secrets.token_hex(8))
    on_step: Callable[[Stepped], None] | None = None
    number: int = field(default_factory=lambda: next(_numbers))
    begun: float | None = None
    deaths: int = 0
    cancelled: str = ""


class Line:
    """Those who wait. At most `limit` do."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._single: deque[Ticket] = deque()
        self._bulk: deque[Ticket] = deque()
        self._in_a_row = 0

    def __len__(self) -> int:
        return len(self._single) + len(self._bulk)

    def __iter__(self) -> Iterator[Ticket]:
        """In the order in which they will be drawn if nobody else comes."""
        single, bulk, in_a_row = deque(self._single), deque(self._bulk), self._in_a_row
        while single or bulk:
            is_bulk = _bulk_is_next(single, bulk, in_a_row)
            in_a_row = 0 if is_bulk else in_a_row + 1
            yield (bulk if is_bulk else single).popleft()

    def room_for(self, tickets: int) -> bool:
        """Whether so many more may wait."""
        return len(self) + tickets <= self.limit

    def put(self, ticket: Ticket, *, first: bool = False) -> None:
        """Let it wait at the end of its class, or before all others of it."""
        waiting = self._bulk if ticket.bulk else self._single
        waiting.appendleft(ticket) if first else waiting.append(ticket)

    def take(self) -> Ticket:
        """The next to be drawn. There must be one."""
        is_bulk = _bulk_is_next(self._single, self._bulk, self._in_a_row)
        self._in_a_row = 0 if is_bulk else self._in_a_row + 1
        return (self._bulk if is_bulk else self._single).popleft()

    def remove(self, ticket: Ticket) -> bool:
        """Let it wait no more; whether it did."""
        waiting = self._bulk if ticket.bulk else self._single
        if ticket not in waiting:
            return False
        waiting.remove(ticket)
        return True

    def place(self, ticket: Ticket) -> int:
        """1 for the next to be drawn; 0 for one that does not wait."""
        return next((place for place, each in enumerate(self, 1) if each is ticket), 0)

    def counts(self) -> dict[str, int]:
        """How many wait, by class."""
        return {"single": len(self._single), "bulk": len(self._bulk)}


def _bulk_is_next(single: deque[Ticket], bulk: deque[Ticket], in_a_row: int) -> bool:
    return bool(bulk) and (not single or in_a_row >= _SINGLE_IN_A_ROW)
