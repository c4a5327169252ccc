"""The seconds of a run, each counted once, and what happened beside them."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from klein_cli.run.timings import Timings


def pipeline(**loadings: Any) -> Any:
    spent = {"load": 0.01, "encode": 0.0, "denoise": 0.02, "decode": 0.0}
    return SimpleNamespace(timings=spent, loadings=loadings)


def seconds(lines: list[str]) -> dict[str, float]:
    words = (line.rsplit(maxsplit=2) for line in lines if line.endswith(" s"))
    return {phase.strip(): float(number) for phase, number, _ in words}


def test_all_the_phases_are_the_whole() -> None:
    timings = Timings()
    with timings.imports():
        time.sleep(0.05)
    time.sleep(0.1)
    found = seconds(list(timings.lines(pipeline(), writing=0.01)))
    assert list(found) == [
        *("import", "load", "encode", "denoise", "decode", "write", "the rest", "in all")
    ]
    assert found["import"] >= 0.05
    assert found["write"] == pytest.approx(0.01)
    parts = sum(found.values()) - found["in all"]
    assert parts == pytest.approx(found["in all"], abs=0.05)


def test_of_what_others_draw_only_the_whole_is_known() -> None:
    assert list(seconds(list(Timings().lines(None, writing=0.5)))) == ["in all"]


def test_what_threads_read_stands_apart() -> None:
    """Reading is beside the phases: only the waiting is in them."""
    read = SimpleNamespace(read_bytes=7_750_000_000, read_seconds=0.61, waited=0.04)
    mapped = SimpleNamespace(read_bytes=0, read_seconds=0.0, waited=0.0)
    *_, last = Timings().lines(pipeline(transformer=read, vae=mapped), writing=0.0)
    assert last == (
        "read by threads, beside the above: transformer 7.75 GB in 0.61 s (waited 0.04 s)"
    )
