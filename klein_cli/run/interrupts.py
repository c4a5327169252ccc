"""Ctrl-C, and the signals that end a process as it does: SIGTERM, SIGHUP of a closed terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

_ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_Handler = Callable[[int, FrameType | None], object]


class Terminated(KeyboardInterrupt):
    """A signal asks this process to end: what is drawn is kept, as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_code_of(interrupt: KeyboardInterrupt) -> int:
    """What a process ends with after it: 130, or 143 for SIGTERM and 129 for SIGHUP."""
    number = interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT
    return 128 + number


def was_interrupted(code: int) -> bool:
    """Whether an exit code is one of `exit_code_of`."""
    return code - 128 in (signal.SIGINT, *_ENDINGS)


def end_as_by_ctrl_c() -> None:
    """Raise Terminated where one of the signals would kill; one ignored (by nohup) stays so."""
    for number in _ENDINGS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """An interrupt within the block comes behind it; a second one comes at once.

    Python's imports do not survive one: torch would run without the numpy that was half imported,
    and every image fail of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[Callable[[], object]] = []
    with ExitStack() as stack:
        for number in (signal.SIGINT, *_ENDINGS):
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, _holding(handler, held))
                stack.callback(signal.signal, number, handler)
        yield
    for handle in held[:1]:
        handle()


def _holding(handler: _Handler, held: list[Callable[[], object]]) -> _Handler:
    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            handler(number, frame)
        held.append(lambda: handler(number, frame))

    return hold
