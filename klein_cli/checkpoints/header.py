"""The header of a safetensors file: which tensors it holds, and where. Imports no torch.

The format: the length of the header in 8 bytes, the header as JSON, the tensors one after another.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from klein_cli.checkpoints.source import DAMAGED, Stored, unreadable
from klein_cli.errors import ModelError
from klein_cli.tables import parse_json

_LONGEST_HEADER = 16_000_000
"""Bytes: a hundred times what models have, and few enough to be read at once."""
MOST_TENSORS = 20_000
"""Ten times what the largest models have in all their parts."""
_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}
"""An element's size. Of other kinds only their place is checked."""


class Header(NamedTuple):
    """The tensors of a file by name, in its order, and what it says of itself."""

    tensors: dict[str, Stored]
    metadata: dict[str, Any]


def tensors_of(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name. See `read_header`."""
    return read_header(path).tensors


def read_header(path: Path) -> Header:
    """What a safetensors file holds.

    Raises ModelError when the file is absent or not whole: tensors must follow each other without
    overlap, each as long as its shape says, and the file must end where the last one does.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ModelError(f"{path} is not a safetensors file, or was cut short", DAMAGED)
            if length > _LONGEST_HEADER:
                raise ModelError(f"{path} has a header of {length:,} bytes", DAMAGED)
            header = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        entries = parse_json(header.decode())
        metadata = entries.pop("__metadata__", {})
        if len(entries) > MOST_TENSORS:
            raise ModelError(f"{path} has a header of {len(entries):,} tensors", DAMAGED)
        found = {name: _stored(path, entry, 8 + length) for name, entry in entries.items()}
        _check_places(found)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ModelError(f"{path} has a broken header", DAMAGED) from None
    wanted = max((tensor.end for tensor in found.values()), default=8 + length)
    if size != wanted:
        raise ModelError(f"{path} is {size:,} bytes long, not {wanted:,}", DAMAGED)
    return Header(found, metadata if isinstance(metadata, dict) else {})


def _stored(path: Path, entry: dict[str, Any], start: int) -> Stored:
    """A tensor's entry in a header whose tensors begin at `start`."""
    (begin, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
    if not all(type(number) is int and 0 <= number < 2**63 for number in (begin, end, *shape)):
        raise ValueError("not whole numbers")
    size = _BYTES.get(dtype)
    if begin > end or (size is not None and math.prod(shape) * size != end - begin):
        raise ValueError("a tensor is not as long as its shape says")
    return Stored(dtype, shape, path, start + begin, start + end)


def _check_places(tensors: dict[str, Stored]) -> None:
    extents = sorted((tensor.begin, tensor.end) for tensor in tensors.values())
    if any(before[1] > after[0] for before, after in pairwise(extents)):
        raise ValueError("tensors overlap")
