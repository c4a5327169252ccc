"""Where the time of a run went, for --verbose."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klein_cli.checkpoints.load import Loading
    from klein_cli.pipeline import Pipeline

_GIGABYTE = 1e9


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

    def lines(self, pipeline: Pipeline | None, writing: float) -> Iterator[str]:
        """The phases in the order of a picture's way, and what the threads read meanwhile.

        Each second is counted once. Of pictures that other processes draw, only the whole is known.
        """
        total = time.perf_counter() - self._started
        phases = {}
        if pipeline is not None:
            phases = {"import": self.importing, **pipeline.timings, "write": writing}
            phases["the rest"] = total - sum(phases.values())
        for phase, seconds in {**phases, "in all": total}.items():
            yield f"{phase:>10} {seconds:8.2f} s"
        loadings = {} if pipeline is None else pipeline.loadings
        read = [_read(part, one) for part, one in loadings.items() if one.read_bytes]
        if read:
            yield f"read by threads, beside the above: {', '.join(read)}"


def _read(part: str, loading: Loading) -> str:
    size, seconds = loading.read_bytes / _GIGABYTE, loading.read_seconds
    return f"{part} {size:.2f} GB in {seconds:.2f} s (waited {loading.waited:.2f} s)"
