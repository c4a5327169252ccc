"""What a run of `klein bench` is to measure. Imports no torch: it is settled before the work."""

from __future__ import annotations

from dataclasses import dataclass

CEILINGS, WARM, THROUGHPUT, COLD = PARTS = ("ceilings", "warm", "throughput", "cold")
"""In the order in which they are measured."""


FORMAT = 1
"""Of the result; another number for one that today's tables cannot show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How much is enough: rounds of warm images, images of the throughput, processes of each
    side, seconds a ceiling; and whether the page cache is dropped once."""

    rounds: int
    pictures: int
    processes: int
    ceiling_seconds: float
    drop: bool


FULL = Amount(rounds=8, pictures=24, processes=3, ceiling_seconds=0.3, drop=True)
QUICK = Amount(rounds=3, pictures=10, processes=1, ceiling_seconds=0.1, drop=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A run: its parts, its sizes as (width, height), and how much of everything.

    Every image has so many `references` of its own size. `peer` adds diffusers, `compile_vae` to
    the tuned one's preparations. `batch_size` is for the throughput of klein, None for its own
    choice.
    """

    parts: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    steps: int
    guidance: float
    amount: Amount
    peer: bool
    compile_vae: bool
    batch_size: int | None
    references: int = 0
