"""A part of a model in one file: safetensors by BFL's, ComfyUI's or the official names, or GGUF.

Names become the official ones and packed weights are told from plain ones here; what shapes do not
say of a configuration comes from the model whose part the file replaces. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from klein_cli.checkpoints.gguf import check_rare
from klein_cli.checkpoints.identify import PART_NAMES, contents
from klein_cli.checkpoints.kinds import packed
from klein_cli.checkpoints.names import Place, places
from klein_cli.checkpoints.sizes import config_from, with_defaults
from klein_cli.checkpoints.source import DAMAGED, Stored
from klein_cli.errors import ModelError

OPTIONS = {"transformer": "--transformer", "text_encoder": "--text-encoder", "vae": "--vae"}


class FileCheckpoint:
    """See `source.Checkpoint`: the part `part` of what a file holds.

    `like` is the configuration of the part in whose place it is.
    """

    def __init__(self, path: Path, part: str, like: Mapping[str, Any] | None = None) -> None:
        self._path = path
        self._part = part
        self._like = like or {}

    @property
    def place(self) -> str:
        return str(self._path)

    @property
    def files(self) -> list[Path]:
        return [self._path]

    def written_config(self) -> bytes:
        return json.dumps(self.config(), sort_keys=True).encode()

    def config(self) -> dict[str, Any]:
        return with_defaults(self._part, self.own_config, self._like)

    def tensors(self) -> Mapping[str, Stored]:
        return self._read[0]

    @cached_property
    def is_official(self) -> bool:
        """Whether the tensors of the file are called as in the official layout."""
        return self.tensors().keys() <= contents(self._path).of(self._part).keys()

    @cached_property
    def own_config(self) -> dict[str, Any]:
        """What the file's shapes say of the configuration, and nothing else."""
        tensors, metadata = self._read
        return config_from(self._part, tensors, metadata, self.place)

    @cached_property
    def _read(self) -> tuple[dict[str, Stored], Mapping[str, Any]]:
        """The tensors by their official names, and what the file says of itself."""
        held = contents(self._path)
        if self._part not in held.prefixes:
            other = next(iter(held.prefixes))
            raise ModelError(
                f"{self._path} holds a {PART_NAMES[other]}, not a {PART_NAMES[self._part]}",
                f"give it as {OPTIONS[other]}",
            )
        metadata, prefix = held.header.metadata, held.prefixes[self._part]
        found = packed(held.of(self._part), metadata, self.place, prefix)
        check_rare(found, self.place)
        return self._official(found), metadata

    def _official(self, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
        """Every tensor by its official name; one that several make up is several."""
        found: dict[str, Stored] = {}
        for name, held in tensors.items():
            parts = places(self._part, name)
            if not parts:
                raise ModelError(
                    f"{self._path} holds {name}, which is no tensor of a "
                    f"{PART_NAMES[self._part]} of FLUX.2 [klein]",
                    "get the file from another place",
                )
            for part in parts:
                if part.name in found:
                    raise ModelError(f"{self._path} holds {part.name} twice", DAMAGED)
                found[part.name] = self._as_placed(name, held, part)
        return found

    def _as_placed(self, name: str, held: Stored, place: Place) -> Stored:
        if held.row_count % place.of or (place.swapped and held.row_count % 2):
            raise ModelError(f"{self._path}: {name} has {held.row_count} rows", DAMAGED)
        rows = held.row_count // place.of
        part = held if place.of == 1 else held.rows(place.chunk * rows, (place.chunk + 1) * rows)
        if place.swapped:
            part = part._replace(turned=part.row_count // 2)
        if ".attentions." in place.name and part.shape[2:] == (1, 1):
            part = part._replace(shape=part.shape[:2])  # BFL's are convolutions of one pixel
        return part
