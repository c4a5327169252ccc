"""What is reported of a batch: words and steps on its way, seconds and tensors after."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from klein_cli.sampling.loop import Callback

OnEvent = Callable[[str], None]
"""Hears what is being done now, in a few words."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What a batch was on its way to pixels, on the host in float32: for those who compare.

    `embeddings`: one (B, 512, channels); `latents`: (B, h * w, channels) after each step.
    """

    embeddings: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)


class Watch:
    """The words and the clock of one batch.

    `seconds` are added to by phase; what `waited` counts meanwhile, spent on weights that were
    still coming, is "load". `synchronize` waits for the device.
    """

    def __init__(
        self,
        on_event: OnEvent,
        seconds: dict[str, float],
        *,
        synchronize: Callable[[], None],
        waited: Callable[[], float],
    ) -> None:
        self._on_event = on_event
        self._seconds = seconds
        self._synchronize = synchronize
        self._waited = waited

    @contextmanager
    def phase(self, name: str, words: str) -> Iterator[None]:
        """One phase, which begins with some words."""
        self._on_event(words)
        started, before = time.perf_counter(), self._waited()
        yield
        self._synchronize()
        waited = self._waited() - before
        self._add("load", waited)
        self._add(name, time.perf_counter() - started - waited)

    def steps(self, steps: int, callback: Callback | None, trace: Trace | None) -> Callback:
        """A callback for the loop: into the trace, to `callback`, and the next step's words."""

        def step(number: int, sigma: float, latents: Tensor) -> None:
            if trace is not None:
                trace.latents.append(on_host(latents))
            if callback is not None:
                callback(number, sigma, latents)
            if number < steps:
                self._on_event(f"step {number + 1} of {steps}")

        return step

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds


def on_host(tensor: Tensor) -> Tensor:
    """A copy in float32 on the CPU."""
    return tensor.to("cpu", torch.float32, copy=True)
