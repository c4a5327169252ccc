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
from klein_cli.checkpoints.kinds import summary
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.checkpoints.source import DAMAGED, PARTS, Checkpoint, Stored
from klein_cli.errors import ModelError
from klein_cli.recipe import PartFile

_SAMPLE_BYTES = 1024
_DIGITS = 32
_SHIPPED_TOKENIZER = b"Qwen3's, as it comes with klein"


def fingerprint(snapshot: Snapshot) -> str:
    """32 hexadecimal digits for a model.

    Reads about a megabyte of the weights, whatever their size. Raises ModelError when a file is
    absent or not whole.
    """
    parts = {part: snapshot.part(part) for part in PARTS}
    whole = {f"{part}/config.json": held.written_config() for part, held in parts.items()}
    folder = snapshot.tokenizer
    whole["tokenizer/tokenizer.json"] = (
        _SHIPPED_TOKENIZER if folder is None else read_bytes(folder / "tokenizer.json")
    )
    hasher = hashlib.sha256()
    for name in sorted(whole):
        hasher.update(name.encode() + b"\0" + whole[name] + b"\0")
    for part, checkpoint in parts.items():
        for line in sorted(_tensors(checkpoint)):
            hasher.update(part.encode() + b"\0" + line)
    return hasher.hexdigest()[:_DIGITS]


def part_files(snapshot: Snapshot) -> tuple[PartFile, ...]:
    """The files in place of a model's own, each with a fingerprint of its own.

    Raises what `fingerprint` raises.
    """
    found = []
    for part, path in snapshot.given.items():
        checkpoint = snapshot.part(part)
        hasher = hashlib.sha256(checkpoint.written_config())
        for line in sorted(_tensors(checkpoint)):
            hasher.update(line)
        found.append(
            PartFile(
                part=part,
                name=Path(path).name,
                weights=hasher.hexdigest()[:_DIGITS],
                kind=summary(checkpoint.tensors()),
            )
        )
    return tuple(found)


def _tensors(checkpoint: Checkpoint) -> Iterator[bytes]:
    """For each tensor its name, dtype, shape and the hash of its middle."""
    by_file: dict[Path, dict[str, Stored]] = {}
    for name, held in checkpoint.tensors().items():
        companions = held.packing.companions if held.packing else {}
        by_file.setdefault(held.path, {})[name] = held
        for kind, companion in companions.items():
            by_file.setdefault(companion.path, {})[f"{name}.{kind}"] = companion
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
