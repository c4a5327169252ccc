"""Writing beside drawing: in order, bounded, and free for a run of one image."""

from __future__ import annotations

import threading
import time
import weakref
from functools import partial

import pytest

from klein_cli.run.writers import Writers


def test_results_come_in_order_whatever_takes_longer() -> None:
    writers: Writers[int] = Writers(2)
    first = threading.Event()

    def slow() -> int:
        first.wait(10)
        return 1

    writers.put(slow)
    writers.put(lambda: 2)
    time.sleep(0.05)
    assert list(writers.finished()) == []
    first.set()
    assert list(writers.rest()) == [1, 2]
    writers.close()


def test_no_more_waits_than_there_is_room_for() -> None:
    """Pixels that wait for a slow disk would otherwise fill the memory."""
    writers: Writers[int] = Writers(2)
    go = threading.Event()
    begun: list[int] = []

    def writing(number: int) -> int:
        begun.append(number)
        go.wait(10)
        return number

    given: list[int] = []

    def give() -> None:
        for number in range(8):
            writers.put(partial(writing, number))
            given.append(number)

    giver = threading.Thread(target=give)
    giver.start()
    time.sleep(0.2)
    assert begun == [0, 1]
    assert given == [0, 1, 2, 3]
    go.set()
    giver.join()
    assert list(writers.rest()) == list(range(8))
    writers.close()


def test_without_threads_it_is_written_at_once() -> None:
    before = threading.active_count()
    writers: Writers[threading.Thread] = Writers(0)
    writers.put(threading.current_thread)
    assert list(writers.finished()) == [threading.current_thread()]
    assert threading.active_count() == before
    writers.close()


@pytest.mark.parametrize("threads", [0, 1])
def test_closing_keeps_what_was_not_taken(threads: int) -> None:
    writers: Writers[int] = Writers(threads)
    writers.put(lambda: 1)
    writers.close()
    assert list(writers.rest()) == [1]


@pytest.mark.parametrize("threads", [0, 1])
def test_an_error_reaches_who_takes_the_result(threads: int) -> None:
    writers: Writers[int] = Writers(threads)
    writers.put(lambda: 1 // 0)
    writers.put(lambda: 1)
    with pytest.raises(ZeroDivisionError):
        list(writers.rest())
    assert list(writers.rest()) == [1]
    writers.close()


def test_pixels_are_let_go_once_they_are_written() -> None:
    class Pixels:
        pass

    writers: Writers[int] = Writers(1)
    pixels = Pixels()
    held = weakref.ref(pixels)
    writers.put(partial(lambda _: 1, pixels))
    del pixels
    time.sleep(0.1)
    assert held() is None
    assert list(writers.rest()) == [1]
    writers.close()
