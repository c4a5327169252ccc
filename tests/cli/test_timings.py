"""The seconds of a run, each counted once, and what happened beside them."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from klein_cli.cli.timings import Timings
from klein_cli.recipe import Recipe
from klein_cli.run.plan import Job
from klein_cli.run.runner import Failed, Saved


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
    timings.writing += 0.01
    time.sleep(0.1)
    found = seconds(list(timings.lines(pipeline())))
    assert list(found) == [
        *("import", "load", "encode", "denoise", "decode", "write", "the rest", "in all")
    ]
    assert found["import"] >= 0.05
    assert found["write"] == pytest.approx(0.01)
    parts = sum(found.values()) - found["in all"]
    assert parts == pytest.approx(found["in all"], abs=0.05)


def test_the_writing_of_files_is_seen_as_they_pass() -> None:
    recipe = Recipe(prompt="a", seed=5, width=16, height=16, steps=4, guidance=1.0, model="tiny")
    job = Job(index=1, recipe=recipe, path=None, exact=False)
    events = [
        Saved(job=job, path=None, seconds=1.0, writing=0.25),
        Failed(job=job, error=OSError()),
        Saved(job=job, path=None, seconds=1.0, writing=0.5),
    ]
    timings = Timings()
    assert list(timings.watched(events)) == events
    assert timings.writing == 0.75


def test_what_threads_read_stands_apart() -> None:
    """Reading is beside the phases: only the waiting is in them."""
    read = SimpleNamespace(read_bytes=7_750_000_000, read_seconds=0.61, waited=0.04)
    mapped = SimpleNamespace(read_bytes=0, read_seconds=0.0, waited=0.0)
    *_, last = Timings().lines(pipeline(transformer=read, vae=mapped))
    assert last == (
        "read by threads, beside the above: transformer 7.75 GB in 0.61 s (waited 0.04 s)"
    )
