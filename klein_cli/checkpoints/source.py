"""`Checkpoint`: one part of a model, whatever its file. What computes never asks which it is.

Siblings: `folder` and `single_file`. `parts` has the table of them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from klein_cli.errors import ModelError

PARTS = ("text_encoder", "transformer", "vae")
"""The parts of a model that have weights, by the names of their folders in the official layout."""

DAMAGED = "the model is damaged or incomplete: download it again"


def unreadable(path: Path, error: OSError) -> ModelError:
    """The error for a file that the machine does not give."""
    allowed = not isinstance(error, PermissionError)
    return ModelError(
        f"{path} cannot be read: {error.strerror or error}",
        DAMAGED if allowed else "let your user read it: see its permissions",
    )


def stamp_of(path: Path) -> tuple[int, int]:
    """A file's size and time of change: when they are another, so is the file.

    Raises ModelError when there is none any more.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror or error}", "put the file back"
        ) from None
    return found.st_size, found.st_mtime_ns


def check_unchanged(path: Path, stamp: tuple[int, int]) -> None:
    """Raise ModelError for a file whose `stamp_of` was another: its tensors may be others too."""
    if stamp_of(path) != stamp:
        raise ModelError(f"{path} has changed since it was looked at", "run the command again")


class Packing(NamedTuple):
    """How the rows of a tensor become numbers: the `kind`, a name in `dequantise.KINDS`.

    `companions` are the tensors that this takes besides, such as scales, for all rows that are
    stored together; the tensor's first is number `row` of these. `group` is the kind's own number
    of columns that belong together, where it has one.
    """

    kind: str
    companions: Mapping[str, Stored]
    row: int = 0
    group: int = 0


class Span(NamedTuple):
    """Bytes `begin` to `end` of a file: rows of a tensor, from the row `first` on."""

    first: int
    begin: int
    end: int


class Stored(NamedTuple):
    """Where a tensor lies: its bytes are `begin` to `end` of the file, row after row.

    `dtype` is named as in a safetensors header, "BF16", "F32" and so on, or as the `packing` that
    its rows are in. The first `turned` rows of the file are the last of the tensor.
    """

    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    end: int
    packing: Packing | None = None
    turned: int = 0

    @property
    def row_count(self) -> int:
        """Rows; a number by itself is one."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """The length of a row in the file."""
        return (self.end - self.begin) // max(self.row_count, 1)

    @property
    def spans(self) -> list[Span]:
        """Where its rows lie, in the order of the file."""
        if not self.turned:
            return [Span(0, self.begin, self.end)]
        middle = self.begin + self.turned * self.row_bytes
        return [
            Span(self.row_count - self.turned, self.begin, middle),
            Span(0, middle, self.end),
        ]

    def rows(self, first: int, stop: int) -> Stored:
        """Some of its rows, as a tensor."""
        begin, end = (self.begin + row * self.row_bytes for row in (first, stop))
        packing = self.packing and self.packing._replace(row=self.packing.row + first)
        shape = (stop - first, *self.shape[1:])
        return self._replace(shape=shape, begin=begin, end=end, packing=packing)


class Checkpoint(Protocol):
    """The weights of one part, and what it is. Everything but `tensors` and `config` is cheap.

    `place` is what messages call it; `files` are those that hold its weights. Raises ModelError
    when something is absent, broken, or leads out of its folder.
    """

    @property
    def place(self) -> str: ...

    @property
    def files(self) -> list[Path]: ...

    def written_config(self) -> bytes:
        """The configuration as it is written, for the model's fingerprint."""
        ...

    def config(self) -> dict[str, Any]:
        """The entries of the official config.json."""
        ...

    def tensors(self) -> Mapping[str, Stored]:
        """Every tensor by its official name, as stored."""
        ...


def config_of(checkpoint: Checkpoint, key: str, wanted: str) -> dict[str, Any]:
    """A part's configuration, whose entry `key` must name the class `wanted`.

    Raises ModelError when it is absent, broken or names another class.
    """
    table = checkpoint.config()
    found = table.get(key)
    if wanted not in (found if isinstance(found, list) else [found]):
        raise ModelError(
            f"the configuration of {checkpoint.place} describes {found}, not {wanted}",
            "this is not a FLUX.2 [klein] model",
        )
    return table


def size_of(checkpoint: Checkpoint) -> int:
    """Bytes of a part's weights on disk."""
    return sum(path.stat().st_size for path in checkpoint.files)
