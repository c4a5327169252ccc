"""The output folder's manifest: whether a run keeps one, and what an earlier run left in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from klein_cli.cli.request import Request
from klein_cli.cli.terminal.report import Report
from klein_cli.errors import KleinError, UsageError
from klein_cli.output.naming import STDOUT, Destination, destination
from klein_cli.prompts.rows import Defaults
from klein_cli.run.executors.executor import Origin
from klein_cli.run.plan import Plan
from klein_cli.run.resume.history import FILE, History, read_history
from klein_cli.run.resume.journal import Books
from klein_cli.run.resume.manifest import Manifest, opened


@dataclass(slots=True)
class Folder:
    """The output folder of a run: its manifest, locked, and what that told when it was opened.

    A run that cannot be taken up again has no `manifest`; a dry run has none, but its history.
    """

    manifest: Manifest | None
    history: History
    resumed: bool

    @property
    def has_seed(self) -> bool:
        """Whether the run that is taken up has a base seed."""
        return self.resumed and self.history.seed is not None

    def seed(self, given: int | None, drawn: int) -> int:
        """The run's base seed: what it began with, else what was given, else `drawn`.

        Of several runs with a base seed, the one that began with `given` is gone on with.
        """
        began = self.history.seed if self.resumed else None
        if began is None:
            return drawn if given is None else given
        if given is not None and not self.history.go_on_with(given):
            raise UsageError(
                f"no run in this folder began with --seed {given}; the last began with {began}",
                "leave out --seed, or give another folder",
            )
        return began if given is None else given

    def books(self, *, guided: bool) -> Books | None:
        """The books of the run that is planned now. The history's part is over: it is let go."""
        if self.manifest is None:
            return None
        books = Books(self.manifest, self.history, resumed=self.resumed, guided=guided)
        self.history = History()
        return books


@contextmanager
def output_folder(request: Request, defaults: Defaults, report: Report) -> Iterator[Folder]:
    """The folder for the length of a run. Raises UsageError when it is another run's."""
    where = _place(request, defaults)
    if where is None:
        yield Folder(manifest=None, history=History(), resumed=False)
    elif request.dry_run:
        history = read_history(where.folder) or History()
        yield _folder(request, where, None, history, report)
    else:
        with opened(where.folder) as manifest:
            yield _folder(request, where, manifest, manifest.history(), report)


def write_plan(books: Books, planned: Plan, *, model: str, seed: int) -> None:
    """The books' first entries. Raises KleinError when the disk refuses."""
    with _disk_errors(books):
        books.open(planned, model=model, seed=seed)


def write_origin(books: Books, origin: Origin, report: Report, *, bare: bool) -> None:
    """How this run computes; warns when the one that it takes up did otherwise."""
    with _disk_errors(books):
        warning = books.computed_with(origin, bare=bare)
    if warning is not None:
        report.warn(warning)


@contextmanager
def _disk_errors(books: Books) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KleinError(
            f"cannot write {books.manifest}: {error.strerror or error}",
            "make room there, or give another -o",
        ) from None


def _place(request: Request, defaults: Defaults) -> Destination | None:
    """Where the manifest of a run lies, or None when it keeps none.

    It does for a prompts file, for several pictures in a folder that -o names, and for --resume.
    """
    if request.output == STDOUT:
        if request.resume:
            raise UsageError("-o - leaves nothing for --resume", "give a folder")
        return None
    where = destination(request.output, several=True)
    several = defaults.n > 1 or sum(map(len, defaults.seeds)) > 1
    in_folder = request.output is not None and not where.exact
    kept = request.resume or request.prompts_file is not None or (several and in_folder)
    return where if kept else None


def _folder(
    request: Request,
    where: Destination,
    manifest: Manifest | None,
    history: History,
    report: Report,
) -> Folder:
    if history.damaged:
        lines = (
            "1 line that makes" if history.damaged == 1 else f"{history.damaged} lines that make"
        )
        report.warn(f"{where.folder / FILE} has {lines} no sense")
    made, wanted = history.progress()
    if made < wanted and not request.resume:
        report.note(
            f"an earlier run in {where.folder} made {made} of its {wanted} pictures: "
            "--resume goes on with it; this one begins anew"
        )
    resumed = request.resume and history.run > 0
    return Folder(manifest=manifest, history=history, resumed=resumed)
