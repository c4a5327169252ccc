"""A snapshot's files -> one short hash that tells models apart, without reading them whole.

What the picture depends on goes in: the parts' configurations and the tokenizer whole, and of the
weights every tensor's name, dtype, shape and the middle of its values. Two trainings of one model
differ in it, where the files' names, sizes and headers do not; how the tensors are spread over
files does not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from klein_cli.checkpoints.folder import tensors_of, weight_files
from klein_cli.errors import ModelError

_WHOLE = (
    "text_encoder/config.json",
    "tokenizer/tokenizer.json",
    "transformer/config.json",
    "vae/config.json",
)
_PARTS = ("text_encoder", "transformer", "vae")
_SAMPLE_BYTES = 1024
_DIGITS = 32


def fingerprint(root: Path) -> str:
    """32 hexadecimal digits for the model in the snapshot's folder `root`.

    Reads about a megabyte of the weights, whatever their size. Raises ModelError when a file is
    absent or is no whole safetensors file.
    """
    whole = hashlib.sha256()
    for name in _WHOLE:
        whole.update(name.encode() + b"\0" + _read(root / name) + b"\0")
    for part in _PARTS:
        tensors = sorted(line for path in weight_files(root / part) for line in _tensors(path))
        for line in tensors:
            whole.update(part.encode() + b"\0" + line)
    return whole.hexdigest()[:_DIGITS]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _tensors(path: Path) -> Iterator[bytes]:
    """For each tensor of a file its name, dtype, shape and the hash of its middle."""
    stored = tensors_of(path)
    try:
        with path.open("rb") as file:
            for name, (dtype, shape, begin, end) in stored.items():
                size = min(_SAMPLE_BYTES, end - begin)
                file.seek(begin + (end - begin - size) // 2)
                sample = hashlib.sha256(file.read(size)).hexdigest()
                yield f"{name}\0{dtype}\0{shape}\0{sample}\n".encode()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path} cannot be read: {error}",
        "the model is damaged or not complete: download it again",
    )
