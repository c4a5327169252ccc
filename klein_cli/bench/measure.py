"""Seconds and bytes: samples between synchronised moments, and what a contender holds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import ParamSpec, TypeVar

import torch

from klein_cli.device.device import device_for

P = ParamSpec("P")
Result = TypeVar("Result")

_WARM_UPS = 3
_LEAST_SAMPLES = 5
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What several samples of one thing say: their median and their quartiles."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """The spread of at least one sample."""
        if len(samples) == 1:
            return cls(median=samples[0], low=samples[0], high=samples[0], runs=1)
        low, _, high = quantiles(samples, n=4, method="inclusive")
        return cls(median=median(samples), low=low, high=high, runs=len(samples))


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done all that it was asked to."""
    device_for(device).synchronize()
    return time.perf_counter()


def timed(
    device: torch.device, call: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
) -> tuple[Result, float]:
    """What a call returns, and its seconds between two synchronised moments."""
    started = now(device)
    result = call(*args, **kwargs)
    return result, now(device) - started


def seconds_per_call(call: Callable[[], object], device: torch.device, budget: float) -> Spread:
    """Seconds of a call that is repeated for about `budget` seconds, after a warm-up.

    A sample is as many calls as last a fiftieth of a second, so that neither the clock nor the
    waiting for the device counts.
    """
    for _ in range(_WARM_UPS):
        _, once = timed(device, call)
    calls = max(1, math.ceil(_SAMPLE_SECONDS / max(once, 1e-9)))

    def sample() -> None:
        for _ in range(calls):
            call()

    samples: list[float] = []
    until = time.perf_counter() + budget
    while len(samples) < _LEAST_SAMPLES or time.perf_counter() < until:
        samples.append(timed(device, sample)[1] / calls)
    return Spread.of(samples)


class Memory:
    """What one of several contenders takes of a GPU's memory, in bytes; nothing is known of a CPU.

    `held` stays between images: weights, and of graphs what goes in and out. `reserved` is what
    torch's allocator has taken from the device for it at most, the graphs' pool included; beside
    others at least the peak, since it may work in gaps of what they have reserved.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.known = device_for(device).counts_memory
        self.held = 0
        self.reserved = 0
        self._kept = 0

    def share(self, size: int) -> None:
        """Count bytes that another holds too, as if they were there for this one alone."""
        self.held += size
        self._kept += size
        self.reserved = max(self.reserved, self._kept)

    @contextmanager
    def watch(self) -> Iterator[list[int]]:
        """Count what is done in here; the list holds the peak afterwards."""
        peak: list[int] = []
        if not self.known:
            yield peak
            return
        cuda, device = torch.cuda, self._device
        cuda.synchronize(device)
        cuda.empty_cache()
        cuda.reset_peak_memory_stats(device)
        allocated, reserved = cuda.memory_allocated(device), cuda.memory_reserved(device)
        yield peak
        cuda.synchronize(device)
        peak.append(self.held + cuda.max_memory_allocated(device) - allocated)
        self.held += cuda.memory_allocated(device) - allocated
        most = self._kept + cuda.max_memory_reserved(device) - reserved
        self.reserved = max(self.reserved, most, *peak)
        cuda.empty_cache()
        self._kept += cuda.memory_reserved(device) - reserved
