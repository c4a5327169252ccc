"""`Checkpoint`: one part of a model, whatever its file. What computes never asks which it is.

Siblings: `folder`. `resolve` has the table of them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from klein_cli.errors import ModelError

PARTS = ("text_encoder", "transformer", "vae")
"""The parts of a model that have weights, by the names of their folders in the official layout."""

DAMAGED = "the model is damaged or incomplete: download it again"


class Stored(NamedTuple):
    """Where a tensor lies: its bytes are `begin` to `end` of the file, row after row.

    `dtype` is named as in a safetensors header: "BF16", "F32" and so on.
    """

    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    end: int


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
