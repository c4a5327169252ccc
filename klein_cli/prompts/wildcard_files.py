"""A folder of wildcards: `__animals/cats__` is a line of its file animals/cats.txt.

A line is a choice; blank lines and lines that begin with `#` are skipped, as in a prompts file. A
line may hold groups and wildcards of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from klein_cli.errors import UsageError
from klein_cli.paths import check_path
from klein_cli.prompts.utf8 import lines_of

_ENDING = ".txt"


@dataclass(frozen=True, slots=True)
class WildcardFiles:
    """The files under a `folder`, each read once. Raises UsageError for no folder."""

    folder: Path
    _held: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        check_path("--wildcards-dir", self.folder)
        try:
            os.scandir(self.folder).close()
        except OSError as error:
            raise UsageError(
                f"cannot read the folder {self.folder}: {error.strerror or error}",
                "give --wildcards-dir a folder of .txt files",
            ) from None

    def lines(self, name: str, at: int = 0) -> Sequence[str]:
        """The choices of a wildcard, which stands at this character (from 0). Raises UsageError."""
        if name not in self._held:
            self._held[name] = self._read(name, at)
        return self._held[name]

    def _read(self, name: str, at: int) -> tuple[str, ...]:
        path = self.folder / f"{name}{_ENDING}"
        inside = {".", "..", ""}.isdisjoint(name.split("/"))
        if not inside or not os.path.isfile(path):
            names = self._names()
            same = [one for one in names if one.rpartition("/")[2] == name]
            near = same or get_close_matches(name, names, n=1)
            hint = f"did you mean __{near[0]}__?" if near else f"write {name}{_ENDING} there"
            raise UsageError(
                f"__{name}__ at character {at + 1} has no file under {self.folder}", hint
            )
        try:
            with path.open("rb") as file:
                lines = (line.rstrip("\r\n") for line in lines_of(file, str(path)))
                found = tuple(
                    line for line in lines if line.strip() and not line.lstrip().startswith("#")
                )
        except OSError as error:
            raise UsageError(
                f"cannot read {path}: {error.strerror or error}", "check its permissions"
            ) from None
        if not found:
            raise UsageError(f"{path} holds no choices", "write one a line")
        return found

    def _names(self) -> list[str]:
        paths = self.folder.rglob(f"*{_ENDING}")
        return [path.relative_to(self.folder).with_suffix("").as_posix() for path in paths]
