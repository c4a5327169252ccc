"""Where the time of a run went, for --verbose."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from klein_cli.presets import GIGABYTE

if TYPE_CHECKING:
    from klein_cli.optimize.part import Part
    from klein_cli.run.executors.executor import ReadyExecutor


class Timings:
    """The clock of one run, from its first line, and the seconds that went into imports."""

    def __init__(self) -> None:
        self.importing = 0.0
        self._started = time.perf_counter()

    @contextmanager
    def imports(self) -> Iterator[None]:
        """For a block that imports torch."""
        started = time.perf_counter()
        yield
        self.importing += time.perf_counter() - started

    def lines(self, ready: ReadyExecutor, writing: float) -> Iterator[str]:
        """The phases in the order of an image's way, and what the threads read meanwhile.

        Each second is counted once. Of images that other processes draw, only the whole is known.
        """
        total = time.perf_counter() - self._started
        phases = {}
        if ready.pipeline is not None:
            phases = {"import": self.importing, **ready.seconds, "write": writing}
            phases["the rest"] = total - sum(phases.values())
        for phase, seconds in {**phases, "in all": total}.items():
            yield f"{phase:>10} {seconds:8.2f} s"
        parts = {} if ready.pipeline is None else ready.pipeline.parts
        read = [_read(name, part) for name, part in parts.items() if part.read_bytes]
        if read:
            yield f"read by threads, beside the above: {', '.join(read)}"


def _read(name: str, part: Part[Any]) -> str:
    size, seconds = part.read_bytes / GIGABYTE, part.read_seconds
    return f"{name} {size:.2f} GB in {seconds:.2f} s (waited {part.waited:.2f} s)"
