"""What a run reports on its way: events of its images, and words for whoever listens."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from klein_cli.errors import KleinError
from klein_cli.run.jobs import Job

if TYPE_CHECKING:
    from klein_cli.checkpoints.hub.download import Watch


class Listener(Protocol):
    """Who hears of a run. `klein_cli.cli.terminal.report.Report` tells a terminal or a program."""

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def detail(self, text: str) -> None:
        """Something for those who want to know more."""

    def warn(self, text: str) -> None:
        """Something that may spoil the images."""

    def event(self, kind: str, **fields: Any) -> None:
        """Something that a program may act on; see docs/runs.md for the kinds."""

    def doing(self, text: str) -> None:
        """What is being done now, "" for nothing worth a word."""

    def expect(self, images: int) -> None:
        """So many images are going to be made."""

    def progress(self, images: float) -> None:
        """So many images' worth is done beyond those that were finished."""

    def downloading(self) -> AbstractContextManager[Watch]:
        """Who watches a download, for as long as it may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """An image is whole on disk; no path means that it went to standard output.

    `seconds` is the image's share of its batch, and its own encoding and writing.
    """

    job: Job
    path: Path | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An image could not be made or saved. An `error` that is not a KleinError is a bug."""

    job: Job
    error: Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something did not go as it should; `text` says what, and what is done instead."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The run ends here, before all was made: nothing more can be saved or drawn."""

    error: KleinError


Event = Saved | Failed | Notice | Stopped


def words(error: Exception) -> str:
    """An error in one line: what a user reads, or a bug's type and message."""
    if isinstance(error, KleinError):
        return error.message
    return f"{type(error).__name__}: {error}"
