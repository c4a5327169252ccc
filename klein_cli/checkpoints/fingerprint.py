"""A model's files -> one short hash that tells models apart, without reading them whole.

What the image depends on goes in: the parts' configurations and the tokenizer whole, and of the
weights every tensor's name, dtype, shape and the middle of its values. Two trainings of one model
differ in it, where the files' names, sizes and headers do not; how the tensors are spread over
files does not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from klein_cli.checkpoints.folder import read_bytes
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.checkpoints.source import DAMAGED, PARTS, Checkpoint, Stored
from klein_cli.errors import ModelError

_SAMPLE_BYTES = 1024
_DIGITS = 32


def fingerprint(snapshot: Snapshot) -> str:
    """32 hexadecimal digits for a model.

    Reads about a megabyte of the weights, whatever their size. Raises ModelError when a file is
    absent or not whole.
    """
    parts = {part: snapshot.part(part) for part in PARTS}
    whole = {f"{part}/config.json": held.written_config() for part, held in parts.items()}
    whole["tokenizer/tokenizer.json"] = read_bytes(snapshot.root / "tokenizer" / "tokenizer.json")
    hasher = hashlib.sha256()
    for name in sorted(whole):
        hasher.update(name.encode() + b"\0" + whole[name] + b"\0")
    for part, checkpoint in parts.items():
        for line in sorted(_tensors(checkpoint)):
            hasher.update(part.encode() + b"\0" + line)
    return hasher.hexdigest()[:_DIGITS]


def _tensors(checkpoint: Checkpoint) -> Iterator[bytes]:
    """For each tensor its name, dtype, shape and the hash of its middle."""
    by_file: dict[Path, dict[str, Stored]] = {}
    for name, held in checkpoint.tensors().items():
        by_file.setdefault(held.path, {})[name] = held
    for path, tensors in by_file.items():
        try:
            with path.open("rb") as file:
                for name, held in tensors.items():
                    length = held.end - held.begin
                    size = min(_SAMPLE_BYTES, length)
                    file.seek(held.begin + (length - size) // 2)
                    sample = hashlib.sha256(file.read(size)).hexdigest()
                    yield f"{name}\0{held.dtype}\0{list(held.shape)}\0{sample}\n".encode()
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}", DAMAGED) from None
