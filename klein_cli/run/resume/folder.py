"""The output folder of a run: whether it keeps a manifest, and what earlier runs left in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from klein_cli.errors import UsageError
from klein_cli.output.naming import Destination
from klein_cli.presets import Preset
from klein_cli.run.events import Listener
from klein_cli.run.resume.history import FILE, History, read_history
from klein_cli.run.resume.journal import RunJournal
from klein_cli.run.resume.manifest import Manifest, opened

if TYPE_CHECKING:
    from klein_cli.checkpoints.lora.store import AdapterStore
    from klein_cli.images.store import ImageStore


@dataclass(slots=True)
class OutputFolder:
    """The output folder of a run: its manifest, locked, and what that said when it was opened.

    A run that cannot be resumed has no `manifest`; a dry run has none, but its history.
    """

    manifest: Manifest | None
    history: History
    resumed: bool

    @property
    def has_seed(self) -> bool:
        """Whether the run that is resumed has a base seed."""
        return self.resumed and self.history.seed is not None

    def seed(self, given: int | None, drawn: int) -> int:
        """The run's base seed: what it began with, else what was given, else `drawn`.

        Of several runs with a base seed, the one that began with `given` is resumed.
        """
        began = self.history.seed if self.resumed else None
        if began is None:
            return drawn if given is None else given
        if given is not None and not self.history.resume_from(given):
            raise UsageError(
                f"no run in this folder began with --seed {given}; the last began with {began}",
                "leave out --seed, or give another folder",
            )
        return began if given is None else given

    def journal(
        self, preset: Preset, images: ImageStore, adapters: AdapterStore
    ) -> RunJournal | None:
        """That of the run that is planned now, of these images and adapters.

        The history's part is over: it is let go.
        """
        if self.manifest is None:
            return None
        journal = RunJournal(
            self.manifest,
            self.history,
            resumed=self.resumed,
            preset=preset,
            images=images,
            adapters=adapters,
        )
        self.history = History()
        return journal


@contextmanager
def output_folder(
    where: Destination | None, *, resume: bool, dry_run: bool, listener: Listener
) -> Iterator[OutputFolder]:
    """The folder for the length of a run; None for a run that keeps no manifest.

    Raises UsageError when another run is writing into it, or its manifest is not klein's.
    """
    if where is None:
        yield OutputFolder(manifest=None, history=History(), resumed=False)
    elif dry_run:
        history = read_history(where.folder) or History()
        _report_earlier_runs(where, history, listener, resume=resume)
        yield OutputFolder(manifest=None, history=history, resumed=resume and history.run > 0)
    else:
        with opened(where.folder) as manifest:
            history = manifest.history()
            _report_earlier_runs(where, history, listener, resume=resume)
            resumed = resume and history.run > 0
            yield OutputFolder(manifest=manifest, history=history, resumed=resumed)


def _report_earlier_runs(
    where: Destination, history: History, listener: Listener, *, resume: bool
) -> None:
    """What the user should know of the runs before."""
    if history.damaged:
        lines = (
            "1 unreadable line" if history.damaged == 1 else f"{history.damaged} unreadable lines"
        )
        listener.warn(f"{where.folder / FILE} has {lines}")
    made, planned = history.progress()
    if made < planned and not resume:
        listener.note(
            f"an earlier run in {where.folder} made {made} of its {planned} images: "
            "--resume continues it; this one begins anew"
        )
