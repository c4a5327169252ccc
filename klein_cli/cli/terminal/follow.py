"""A run's events -> what the user sees, and the exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from klein_cli.cli.terminal.report import Report
from klein_cli.errors import KleinError, UsageError
from klein_cli.output.naming import STDOUT
from klein_cli.prompts.rows import Row
from klein_cli.run.events import Event, Failed, Notice, Saved, Stopped
from klein_cli.run.interrupts import exit_code_of
from klein_cli.run.jobs import Job
from klein_cli.run.resume.journal import RunJournal


class Runnable(Protocol):
    """What makes images of jobs; see `klein_cli.run.runner.Run`."""

    def events(self, jobs: Iterable[Job]) -> Iterator[Event]: ...

    def rest(self) -> Iterator[Event]: ...


class RunReporter:
    """Counts what becomes of a run's `wanted` images (None: nobody knows), and tells of each.

    `failures` is the file that failed rows are kept in, and None when the run cannot be resumed
    again.
    """

    def __init__(self, report: Report, wanted: int | None, failures: Path | None = None) -> None:
        self._report = report
        self._wanted = wanted
        self._failures = failures
        self._made = 0
        self._codes: list[int] = []
        self._stopped: int | None = None

    def follow(self, run: Runnable, jobs: Iterable[Job]) -> int:
        """Make the images; the exit code of the whole run."""
        try:
            for event in run.events(jobs):
                self.tell(event)
        except KeyboardInterrupt as interrupt:
            self._interrupted(run)
            return exit_code_of(interrupt)
        except BrokenPipeError:
            self._finish(run)
            raise KleinError(
                f"standard output was closed, so the run ends: {self._tally()}{self._more()}",
                "send it to a file, or to a program that reads all of it",
            ) from None
        return self.finish()

    def refuse(self, refused: Iterable[tuple[Row, UsageError]], journal: RunJournal | None) -> None:
        """Report the images of a folder that cannot be edited, and put them on record."""
        for row, error in refused:
            self._codes.append(error.exit_code)
            self._report.refused(row, error)
            if journal is not None:
                journal.refused(row, error.message)

    def refuse_line(self, line: int, error: UsageError) -> None:
        """Report a row of a stream that cannot be drawn."""
        self._codes.append(error.exit_code)
        self._report.refused_line(line, error)

    def finish(self) -> int:
        """Report the end of the run; its exit code."""
        self._report.event("finished", made=self._made, failed=len(self._codes))
        if self._wanted is None:
            failed = f", {len(self._codes)} failed" if self._codes else ""
            self._report.note(self._tally() + failed)
        elif self._wanted > max(1, self._made):
            where = f": see {self._failures}" if self._codes and self._failures else ""
            self._report.note(f"{self._tally()}, {len(self._codes)} failed{where}")
        return exit_code(self._made, self._codes) if self._stopped is None else self._stopped

    def tell(self, event: Event) -> None:
        """Report one event, and remember it."""
        if isinstance(event, Saved):
            self._made += 1
            self._report.saved(event)
        elif isinstance(event, Failed):
            self._codes.append(getattr(event.error, "exit_code", 1))
            self._report.failed(event)
        elif isinstance(event, Notice):
            self._report.warn(event.text)
        elif isinstance(event, Stopped):
            self._stopped = event.error.exit_code
            self._report.stopped(event)

    def _finish(self, run: Runnable) -> None:
        """Tell of the images that were drawn by now, should there be nobody to hear it."""
        for event in run.rest():
            with suppress(BrokenPipeError):
                self.tell(event)

    def _interrupted(self, run: Runnable) -> None:
        self._finish(run)
        with suppress(BrokenPipeError):  # the same Ctrl-C ends who reads of it
            self._report.event("interrupted", made=self._made, wanted=self._wanted)
        self._report.note(f"interrupted: {self._tally()}{self._more()}")

    def _tally(self) -> str:
        if self._wanted is None:
            return f"{self._made} image{'s' * (self._made != 1)} made"
        return f"{self._made} of {self._wanted} images made"

    def _more(self) -> str:
        return "" if self._failures is None else "; the same command with --resume makes the rest"


def run_command(
    run: Callable[[Report], int],
    *,
    json: bool,
    quiet: bool,
    verbose: bool,
    output: str | None,
    dry_run: bool,
) -> int:
    """The exit code of a command that draws, which is given the report that these options ask for.

    An error, and an interrupt outside a run, become events too.
    """
    silent = output == STDOUT and not dry_run
    report = Report(as_json=json, quiet=quiet, verbose=verbose, silent_stdout=silent)
    try:
        with report.errors():
            return run(report)
    except KeyboardInterrupt as interrupt:
        with suppress(BrokenPipeError):
            report.event("interrupted", made=0, wanted=None)
        report.note("interrupted")
        return exit_code_of(interrupt)


def exit_code(made: int, failures: list[int]) -> int:
    """0 all made, 1 some failed; when none was made, what they failed of if it was all the same."""
    if not failures:
        return 0
    return failures[0] if not made and len(set(failures)) == 1 else 1
