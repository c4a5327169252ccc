"""Bytes that should be UTF-8 -> lines of text; what is wrong with them is named by its offset."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

from klein_cli.errors import UsageError

_PIECE = 2**16
MAX_LINE = 2**21
"""Bytes of a line: more than a row of the longest prompts has, however they are written."""
MARK = "\ufeff"
"""U+FEFF, the byte order mark: three bytes in UTF-8, and nothing to see."""
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def decode(data: bytes, name: str) -> str:
    """UTF-8 with or without a byte order mark -> text. Raises UsageError with the byte's offset."""
    return "".join(lines_of(io.BytesIO(data), name))


def lines_of(file: BinaryIO, name: str) -> Iterator[str]:
    """The lines of a UTF-8 file with their endings, less byte order marks.

    A mark begins a file, and a line where files were put together. A line ends with \\n, \\r\\n or
    \\r. Raises UsageError that names the byte that is not UTF-8.
    """
    offset, before = 0, 0
    for lines in _whole_lines(file, name):
        if offset == 0 and lines.startswith(_UTF16_MARKS):
            raise UsageError(f"{name} is UTF-16, not UTF-8", "save it as UTF-8")
        try:
            text = lines.decode("utf-8")
        except UnicodeDecodeError as error:
            at = error.start
            number = before + 1 + _endings(lines[:at])
            raise UsageError(
                f"{name} is not UTF-8: byte {lines[at]:#04x} at offset {offset + at} "
                f"(line {number})",
                "save it as UTF-8",
            ) from None
        if "\0" in text:
            number = before + 1 + _endings(lines[: lines.index(b"\0")])
            raise UsageError(
                f"{name} is not text: a zero byte at offset {offset + lines.index(0)} "
                f"(line {number})",
                "save it as UTF-8, not as UTF-16",
            )
        offset, before = offset + len(lines), before + _endings(lines)
        # Not str.splitlines, which would also cut at U+2028 and its like.
        yield from (line.removeprefix(MARK) for line in io.StringIO(text, newline=""))


def _whole_lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The bytes of a file, cut behind line endings only: these are part of no other character.

    Raises UsageError for a line longer than MAX_LINE.
    """
    held, number = b"", 1
    while piece := file.readline(_PIECE):
        held += piece
        # A \r at the very end may be half of a \r\n.
        cut = len(held) if held.endswith(b"\n") else held.rfind(b"\r", 0, -1) + 1
        if cut:
            yield held[:cut]
            number += _endings(held[:cut])
            held = held[cut:]
        if len(held) > MAX_LINE:
            raise too_long(f"line {number} of {name}")
    if held:
        yield held


def _endings(data: bytes) -> int:
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")


def too_long(what: str) -> UsageError:
    """The error for a line, or a text, that does not end in time."""
    return UsageError(
        f"{what} is longer than {MAX_LINE // 2**20} MB", "is it text? write one prompt a line"
    )
