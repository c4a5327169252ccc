"""From the line to engines that die, idle, fail to load and are told to end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_engines import Script, service_of

from klein_cli.errors import CancelledError, KleinError, ModelError, OutOfMemoryError
from klein_cli.recipe import Recipe
from klein_cli.run.executors.executor import WorkerDied
from klein_cli.serve.dispatcher import Dispatcher
from klein_cli.serve.drawing import Drawing
from klein_cli.serve.line import LineFull, Stopping, Ticket, TooLate

RECIPE = Recipe(prompt="a", seed=1, width=64, height=64, steps=2, guidance=1.0, model="tiny")


def served(
    work: Callable[[Dispatcher, Script], Awaitable[Any]], script: Script, **options: Any
) -> Any:
    """What `work` comes to with a dispatcher that has begun."""

    async def main() -> Any:
        dispatcher = service_of(script, **options).dispatcher
        await dispatcher.start(load=True)
        try:
            return await asyncio.wait_for(work(dispatcher, script), 10)
        finally:
            await dispatcher.stop(1)

    return asyncio.run(main())


def drawing(dispatcher: Dispatcher, *seeds: int, **options: Any) -> Drawing:
    return Drawing(dispatcher, [replace(RECIPE, seed=seed) for seed in seeds], job="j", **options)


async def until(true: Callable[[], bool]) -> None:
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


def test_an_image_is_drawn_again_once_when_its_engine_dies() -> None:
    async def work(dispatcher: Dispatcher, script: Script) -> None:
        await drawing(dispatcher, 1).pixels(0)

    script = Script(deaths=1)
    served(work, script)
    assert len(script.drawn) == 2
    assert script.loads == 2, "the engine that died was not started anew"


def test_an_image_that_kills_engines_is_given_up_and_the_next_is_drawn() -> None:
    async def work(dispatcher: Dispatcher, script: Script) -> None:
        with pytest.raises(WorkerDied):
            await drawing(dispatcher, 1).pixels(0)
        await drawing(dispatcher, 2).pixels(0)

    script = Script(deaths=2)
    served(work, script)
    assert [request.recipes[0].seed for request in script.drawn] == [1, 1, 2]


def test_a_cancelled_image_ends_between_steps_and_one_that_waits_is_never_begun() -> None:
    async def work(dispatcher: Dispatcher, script: Script) -> None:
        both = drawing(dispatcher, 1, 2)
        await until(lambda: bool(script.drawn))
        both.cancel("left")
        for index in (0, 1):
            with pytest.raises(CancelledError):
                await both.pixels(index)
        await drawing(dispatcher, 3).pixels(0)

    script = Script(step_seconds=0.02)
    served(work, script)
    assert [request.recipes[0].seed for request in script.drawn] == [1, 3]


def test_a_cancel_by_id_leaves_the_images_of_others_alone() -> None:
    """ComfyUI's interrupt broke off whatever happened to run."""

    async def work(dispatcher: Dispatcher, script: Script) -> None:
        mine = Drawing(dispatcher, [RECIPE], job="mine")
        theirs = Drawing(dispatcher, [RECIPE, RECIPE], job="theirs")
        assert dispatcher.cancel_job("theirs", "asked")
        assert not dispatcher.cancel_job("theirs", "asked")
        assert not dispatcher.cancel_job("nobody's", "asked")
        await mine.pixels(0)
        with pytest.raises(CancelledError):
            await theirs.pixels(1)

    served(work, Script(step_seconds=0.02))


def test_a_full_line_says_how_long_it_will_take_and_takes_nothing_of_what_is_too_much() -> None:
    async def work(dispatcher: Dispatcher, script: Script) -> None:
        first = drawing(dispatcher, 1)
        await until(lambda: bool(script.drawn))
        rest = drawing(dispatcher, 2, 3)
        dispatcher._state.seconds = 10.0
        with pytest.raises(LineFull) as full:
            drawing(dispatcher, 4)
        assert (full.value.place, full.value.retry_after) == (3, 30)
        assert len(dispatcher.waiting) == 2
        first.cancel("left")
        rest.cancel("left")

    served(work, Script(step_seconds=0.1), queue=2)


def test_what_is_not_begun_in_time_is_let_go() -> None:
    async def work(dispatcher: Dispatcher, script: Script) -> None:
        first = drawing(dispatcher, 1)
        late = drawing(dispatcher, 2, wait=0.02)
        with pytest.raises(TooLate):
            await late.pixels(0)
        await first.pixels(0)

    script = Script(step_seconds=0.1)
    served(work, script)
    assert len(script.drawn) == 1


def test_an_idle_engine_ends_and_the_next_image_starts_another() -> None:
    async def work(dispatcher: Dispatcher, script: Script) -> None:
        await until(lambda: dispatcher.loaded == 0)
        assert script.closed == 1
        assert dispatcher.ready, "an engine that rests is ready all the same"
        await drawing(dispatcher, 1).pixels(0)

    script = Script()
    served(work, script, keep_alive=0.03)
    assert script.loads == 2


def test_an_engine_stays_for_ever_unless_it_is_told() -> None:
    async def work(dispatcher: Dispatcher, script: Script) -> None:
        await asyncio.sleep(0.05)
        assert dispatcher.loaded == 1
        await dispatcher.unload()
        assert dispatcher.loaded == 0
        await drawing(dispatcher, 1).pixels(0)

    served(work, Script())


def test_a_model_that_cannot_be_loaded_is_an_error_at_the_start() -> None:
    async def main() -> None:
        dispatcher = service_of(Script(load_error=ModelError("damaged", "mend it"))).dispatcher
        with pytest.raises(ModelError, match="damaged"):
            await dispatcher.start(load=True)
        assert not dispatcher.ready
        await dispatcher.stop(0)

    asyncio.run(main())


def test_memory_that_runs_out_is_a_step_down_that_the_record_tells() -> None:
    async def work(dispatcher: Dispatcher, script: Script) -> str | None:
        _, step_down = await drawing(dispatcher, 1).pixels(0)
        return step_down

    script = Script(no_room_for=64)
    assert served(work, script) == "out of memory: decoded in tiles"
    assert [request.tiled for request in script.drawn] == [False, True]


def test_memory_that_is_short_even_so_is_an_error() -> None:
    async def work(dispatcher: Dispatcher, script: Script) -> None:
        with pytest.raises(OutOfMemoryError):
            await drawing(dispatcher, 1).pixels(0)

    script = Script(no_room_for=64, fits_in_tiles=False)
    served(work, script)
    assert len(script.drawn) == 2


def test_the_end_finishes_what_is_in_hand_and_lets_go_of_the_rest() -> None:
    async def work(dispatcher: Dispatcher, script: Script) -> None:
        both = drawing(dispatcher, 1, 2)
        await until(lambda: bool(script.drawn))
        ending = asyncio.ensure_future(dispatcher.stop(5))
        await asyncio.sleep(0)
        assert not dispatcher.ready, "/readyz must fail first"
        with pytest.raises(Stopping):
            drawing(dispatcher, 3)
        with pytest.raises(Stopping):
            await both.pixels(1)
        await both.pixels(0)
        await ending

    script = Script(step_seconds=0.05)
    served(work, script)
    assert len(script.drawn) == 1
    assert script.closed >= 1


def test_two_engines_draw_at_once_and_no_image_is_drawn_twice() -> None:
    async def work(dispatcher: Dispatcher, script: Script) -> int:
        asked = drawing(dispatcher, *range(20))
        await until(lambda: len(script.drawn) >= 2)
        most = len(dispatcher.drawing)
        await asyncio.gather(*(asked.pixels(index) for index in range(20)))
        return most

    script = Script(step_seconds=0.002)
    assert served(work, script, engines=2) == 2
    assert sorted(request.recipes[0].seed for request in script.drawn) == list(range(20))


def test_a_bug_over_one_image_does_not_stop_the_line() -> None:
    async def work(dispatcher: Dispatcher, script: Script) -> None:
        broken = drawing(dispatcher, 1)
        ticket: Ticket = broken.tickets[0]
        ticket.since = None  # type: ignore[assignment]
        with pytest.raises(KleinError, match="unsupported operand"):
            await broken.pixels(0)
        await drawing(dispatcher, 2).pixels(0)

    served(work, Script())
