"""Who is next: single images before bulk, and none starved."""

from __future__ import annotations

import asyncio

from klein_cli.recipe import Recipe
from klein_cli.run.executors.worker import DrawRequest
from klein_cli.serve.line import Line, Ticket

RECIPE = Recipe(prompt="a", seed=1, width=64, height=64, steps=1, guidance=1.0, model="tiny")

LOOP = asyncio.new_event_loop()
LOOP.close()


def ticket(*, bulk: bool = False) -> Ticket:
    return Ticket(
        request=DrawRequest(recipes=[RECIPE], tiled=False),
        bulk=bulk,
        result=asyncio.Future(loop=LOOP),
        until=0.0,
        since=0.0,
    )


def line_of(*tickets: Ticket) -> Line:
    line = Line()
    for each in tickets:
        line.put(each)
    return line


def test_a_single_image_is_drawn_before_bulk_that_came_earlier() -> None:
    bulk, single = ticket(bulk=True), ticket()
    line = line_of(bulk, single)
    assert [line.take(), line.take()] == [single, bulk]


def test_bulk_is_not_starved_by_single_images_that_never_end() -> None:
    """With plain priority a run of ten thousand would stand still beside one busy page."""
    bulk = ticket(bulk=True)
    line = line_of(bulk, *(ticket() for _ in range(8)))
    taken = []
    for _ in range(9):
        line.put(ticket())
        taken.append(line.take())
    assert taken.index(bulk) == 4


def test_the_place_that_is_told_is_the_one_that_is_kept() -> None:
    tickets = [ticket(bulk=number % 3 == 0) for number in range(20)]
    line = line_of(*tickets)
    told = {line.place(each): each for each in tickets}
    assert [line.take() for _ in tickets] == [told[place] for place in range(1, 21)]
    assert line.place(tickets[0]) == 0


def test_what_is_removed_is_not_drawn_and_what_is_given_again_comes_first() -> None:
    first, second, third = ticket(), ticket(), ticket()
    line = line_of(first, second)
    assert line.remove(first)
    assert not line.remove(first)
    line.put(third, first=True)
    assert [line.take(), line.take()] == [third, second]
    assert len(line) == 0


def test_there_is_room_up_to_the_limit() -> None:
    line = Line(limit=2)
    assert line.room_for(2)
    line.put(ticket())
    assert line.room_for(1)
    assert not line.room_for(2)
