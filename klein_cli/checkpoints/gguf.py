"""The header of a GGUF file: which tensors it holds, where, and how they are packed.

The format: a magic number and counts, keys with values of 13 types, a line a tensor, then their
bytes, aligned. Nothing is taken on trust: what a count or a length promises must be in the file,
and no more of it is read than models have. Imports no torch.
"""

from __future__ import annotations

import importlib.util
import mmap
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from klein_cli.checkpoints.header import MOST_TENSORS, Header
from klein_cli.checkpoints.source import DAMAGED, Packing, Stored, unreadable
from klein_cli.errors import ModelError

MAGIC = b"GGUF"


class GgufType(NamedTuple):
    """How rows are stored: `size` bytes for each `block` of columns."""

    name: str
    block: int
    size: int


PLAIN = {0: GgufType("F32", 1, 4), 1: GgufType("F16", 1, 2), 30: GgufType("BF16", 1, 2)}
PACKED = {
    2: GgufType("Q4_0", 32, 18),
    3: GgufType("Q4_1", 32, 20),
    6: GgufType("Q5_0", 32, 22),
    7: GgufType("Q5_1", 32, 24),
    8: GgufType("Q8_0", 32, 34),
    10: GgufType("Q2_K", 256, 84),
    11: GgufType("Q3_K", 256, 110),
    12: GgufType("Q4_K", 256, 144),
    13: GgufType("Q5_K", 256, 176),
    14: GgufType("Q6_K", 256, 210),
    20: GgufType("IQ4_NL", 32, 18),
    23: GgufType("IQ4_XS", 256, 136),
}
RARE = {
    16: GgufType("IQ2_XXS", 256, 66),
    17: GgufType("IQ2_XS", 256, 74),
    18: GgufType("IQ3_XXS", 256, 98),
    19: GgufType("IQ1_S", 256, 50),
    21: GgufType("IQ3_S", 256, 110),
    22: GgufType("IQ2_S", 256, 82),
    29: GgufType("IQ1_M", 256, 56),
    34: GgufType("TQ1_0", 256, 54),
    35: GgufType("TQ2_0", 256, 66),
    39: GgufType("MXFP4", 32, 17),
}
"""What the `gguf` package unpacks, on the host."""
_TYPES = PLAIN | PACKED | RARE

_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Values of a fixed length, as `struct` writes them."""
_STRING, _ARRAY = 8, 9

_MOST_KEYS = 10_000
_MOST_STRINGS = 2_000_000
"""Of all arrays together: a vocabulary and its merges have 300,000."""
_LONGEST_STRING = 1 << 20
_LONGEST_NAME = 512
_MOST_KEPT = 64
"""Of an array's values; longer ones are those of the tokenizer, of which nothing is needed."""
_MOST_DIMENSIONS = 4
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


def read_gguf(path: Path) -> Header:
    """What a GGUF file holds.

    Raises ModelError when the file is absent or not whole, and for types of which no reader here
    knows how long their blocks are.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).header()
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:  # an empty file cannot be mapped
        raise ModelError(f"{path} cannot be read: {error}", DAMAGED) from None


def check_rare(tensors: Mapping[str, Stored], place: str) -> None:
    """Raise ModelError for a type that only the package `gguf` unpacks, where that is not here."""
    found = rare_kinds(tensors)
    if found and importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{place} holds weights in {found[0]}, which klein leaves to another package",
            "pip install 'klein-cli[gguf]', or get the model as Q4_K_M or Q8_0, which is quicker",
        )


def rare_kinds(tensors: Mapping[str, Stored]) -> list[str]:
    """The types among some tensors that only the package `gguf` unpacks."""
    rare = {kind.name for kind in RARE.values()}
    return sorted({held.dtype for held in tensors.values()} & rare)


class _Broken(Exception):
    pass


class _Reader:
    """A place in the file, which moves on as values are read."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._at = len(MAGIC)
        self._strings = 0

    def header(self) -> Header:
        try:
            version, tensors, keys = self._value("I"), self._value("Q"), self._value("Q")
            if version not in (2, 3):
                raise _Broken(f"is of version {version}; klein reads 2 and 3")
            if tensors > MOST_TENSORS or keys > _MOST_KEYS:
                raise _Broken(f"promises {tensors:,} tensors and {keys:,} keys")
            metadata = dict(self._key() for _ in range(keys))
            lines = [self._tensor() for _ in range(tensors)]
            return Header(dict(self._placed(lines, metadata)), metadata)
        except (_Broken, struct.error, UnicodeDecodeError) as error:
            why = error if isinstance(error, _Broken) else "has a broken header"
            raise ModelError(f"{self._path} {why}", DAMAGED) from None

    def _value(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self._data, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return value

    def _string(self, most: int) -> str:
        begin = self._after_string(most)
        return self._data[begin : self._at].decode("utf-8")

    def _after_string(self, most: int) -> int:
        """Move on behind a string; where it begins."""
        length = self._value("Q")
        begin = self._at
        if length > most or begin + length > self._size:
            raise _Broken("has a broken header")
        self._at = begin + length
        return begin

    def _key(self) -> tuple[str, Any]:
        return self._string(_LONGEST_NAME), self._typed(self._value("I"))

    def _typed(self, kind: int) -> Any:
        if kind in _FIXED:
            return self._value(_FIXED[kind])
        if kind == _STRING:
            return self._string(_LONGEST_STRING)
        if kind == _ARRAY:
            return self._array()
        raise _Broken("has a broken header")

    def _array(self) -> list[Any] | None:
        """Its values; None for a long one."""
        kind, count = self._value("I"), self._value("Q")
        if kind in _FIXED:
            length = count * struct.calcsize(f"<{_FIXED[kind]}")
            if self._at + length > self._size:
                raise _Broken("has a broken header")
            if count <= _MOST_KEPT:
                return [self._value(_FIXED[kind]) for _ in range(count)]
            self._at += length
            return None
        self._strings += count
        if kind != _STRING or self._strings > _MOST_STRINGS:
            raise _Broken("has a broken header")
        for _ in range(count):
            self._after_string(_LONGEST_STRING)
        return None

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Its name, shape, type and offset."""
        name, dimensions = self._string(_LONGEST_NAME), self._value("I")
        if dimensions > _MOST_DIMENSIONS:
            raise _Broken(f"gives {name} {dimensions} dimensions")
        # In the order of the file the columns come first.
        shape = tuple(self._value("Q") for _ in range(dimensions))[::-1]
        return name, shape, self._value("I"), self._value("Q")

    def _placed(
        self, lines: list[tuple[str, tuple[int, ...], int, int]], metadata: Mapping[str, Any]
    ) -> Iterator[tuple[str, Stored]]:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
            raise _Broken(f"is aligned to {str(alignment)[:20]}")
        start = -(-self._at // alignment) * alignment
        end = 0
        for name, shape, number, offset in sorted(lines, key=lambda line: line[3]):
            held = self._stored(name, shape, number, start + offset, metadata)
            if held.begin < end:
                raise _Broken(f"has {name} begin where another tensor lies")
            end = held.end
            yield name, held
        if end > self._size:
            raise _Broken(f"is {self._size:,} bytes long, not {end:,}")
        if len({name for name, *_ in lines}) < len(lines):
            raise _Broken("names a tensor twice")

    def _stored(
        self,
        name: str,
        shape: tuple[int, ...],
        number: int,
        begin: int,
        metadata: Mapping[str, Any],
    ) -> Stored:
        kind = _TYPES.get(number)
        if kind is None:
            raise _Broken(f"holds {name} in GGUF's type {number}, which klein does not know")
        columns = shape[-1] if shape else 1
        if columns % kind.block or prod(shape) >= 1 << 48:
            raise _Broken(f"gives {name} a shape of {shape} in {kind.name}")
        end = begin + prod(shape) // kind.block * kind.size
        packing = None if number in PLAIN else Packing(kind.name, {})
        found = Stored(kind.name, shape, self._path, begin, end, packing)
        original = metadata.get(_ORIGINAL_SHAPE + name)
        if original is None:
            return found
        return found._replace(shape=self._original(name, found, original))

    def _original(self, name: str, found: Stored, original: Any) -> tuple[int, ...]:
        """The shape that a tensor had before its dimensions were brought to what GGUF can say."""
        if isinstance(original, list) and all(type(n) is int and n >= 0 for n in original):
            shape = tuple(original)
            whole_rows = found.packing is None or shape[-1:] == found.shape[-1:]
            if prod(shape) == prod(found.shape) and whole_rows:
                return shape
        raise _Broken(f"gives {name} a shape that it cannot have")
