"""Events -> what is said, and the exit code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from klein_cli.cli.terminal.follow import RunReporter, exit_code
from klein_cli.cli.terminal.report import Report
from klein_cli.errors import KleinError, OutOfMemoryError
from klein_cli.recipe import Recipe
from klein_cli.run.events import Event, Failed, Notice, Saved, Stopped
from klein_cli.run.jobs import Job, Jobs
from klein_cli.run.runner import Run


def events(*kinds: str) -> Iterator[Event]:
    recipe = Recipe(prompt="a", seed=5, width=16, height=16, steps=4, guidance=1.0, model="tiny")
    for index, kind in enumerate(kinds, start=1):
        job = Job(index=index, recipe=recipe, path=Path(f"{index}.png"), exact=False)
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "saved":
            yield Saved(job=job, path=job.path, seconds=1.0)
        elif kind == "stopped":
            yield Stopped(error=KleinError("the disk is full", "make room"))
        elif kind == "memory":
            yield Failed(job=job, error=OutOfMemoryError("no memory", "use less"))
        else:
            yield Failed(job=job, error=RuntimeError("a bug"))


class Told:
    """A run whose events are known beforehand."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.kinds = kinds

    def events(self, jobs: Jobs) -> Iterator[Event]:
        return events(*self.kinds)

    def rest(self) -> Iterator[Event]:
        return iter(())


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        (("saved", "saved"), 0),
        (("saved", "memory"), 1),
        (("bug", "saved"), 1),
        (("memory",), 4),
        (("memory", "memory"), 4),
        (("memory", "bug"), 1),
        (("bug",), 1),
        (("saved", "interrupt"), 130),
        (("saved", "stopped"), 1),
    ],
)
def test_the_exit_code_of_a_run(
    kinds: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(as_json=False, quiet=False, verbose=False, silent_stdout=False)
    run = cast(Run, Told(kinds))
    assert RunReporter(report, len(kinds)).follow(run, Jobs()) == code
    said = capsys.readouterr()
    assert said.out.count("\n") == kinds.count("saved")
    if len(kinds) > 1 and code != 0:
        assert f"{kinds.count('saved')} of {len(kinds)} images made" in said.err


def test_exit_code_of_nothing_made() -> None:
    assert exit_code(0, []) == 0
    assert exit_code(0, [3, 3]) == 3
    assert exit_code(1, [3, 3]) == 1


def follow(*told: Event, failures: Path | None = None) -> int:
    class Some:
        def events(self, jobs: Jobs) -> Iterator[Event]:
            yield from told

    report = Report(as_json=False, quiet=False, verbose=False, silent_stdout=False)
    return RunReporter(report, 3, failures).follow(cast(Run, Some()), Jobs())


def test_steps_down_and_notices_are_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    follow(Notice(text="one by one"), Notice(text="a worker died"))
    assert capsys.readouterr().err.splitlines()[:2] == [
        "warning: one by one",
        "warning: a worker died",
    ]


def test_failed_rows_are_pointed_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(*events("saved", "memory"), failures=Path("d/failed.jsonl")) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "1 of 3 images made, 1 failed: see d/failed.jsonl"


def test_an_interrupt_tells_of_what_was_still_written_and_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Interrupted:
        def events(self, jobs: Jobs) -> Iterator[Event]:
            yield from events("saved", "interrupt")

        def rest(self) -> Iterator[Event]:
            yield from events("saved")

    report = Report(as_json=False, quiet=False, verbose=False, silent_stdout=False)
    followed = RunReporter(report, 9, Path("d/failed.jsonl"))
    assert followed.follow(cast(Run, Interrupted()), Jobs()) == 130
    said = capsys.readouterr()
    assert said.out.count("\n") == 2
    assert said.err == (
        "interrupted: 2 of 9 images made; the same command with --resume makes the rest\n"
    )
