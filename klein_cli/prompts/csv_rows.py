"""Tables -> rows: separated by commas, semicolons or tabs, under a header with names.

The header tells what separates: a comma, or where it has none a semicolon or a tab, as spreadsheets
of other countries write. Between tabs a quote is a quote, unless it is around all of a cell.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from klein_cli.errors import UsageError
from klein_cli.prompts.columns import (
    KEYS,
    BadRow,
    Reading,
    check_names,
    prompt_column,
    row_of_values,
)
from klein_cli.prompts.rows import Row

_NUMBERS = ("seed", "width", "height", "steps", "guidance", "n")
_SEVERAL = ("image", "lora")
"""Of these a table may have several columns, and a cell several values between semicolons."""
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def parse_csv(lines: Iterable[str], reading: Reading | None = None) -> Iterator[Row | BadRow]:
    """Rows under a header with names; an empty cell is unsaid, and a row of them is skipped."""
    lines, separator = _with_separator(iter(lines))
    return _table(lines, separator, reading or Reading())


def parse_tsv(lines: Iterable[str], reading: Reading | None = None) -> Iterator[Row | BadRow]:
    """The same, separated by tabs whatever the header looks like."""
    return _table(lines, "\t", reading or Reading())


def _with_separator(lines: Iterator[str]) -> tuple[Iterator[str], str]:
    """The lines, and what separates the cells of the first that is not blank."""
    head: list[str] = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    header = head[-1] if head else ""
    found = [separator for separator in _SEPARATORS if separator in header]
    return chain(head, lines), (found or [","])[0]


def _table(lines: Iterable[str], separator: str, reading: Reading) -> Iterator[Row | BadRow]:
    reader = csv.reader(
        lines,
        strict=True,
        delimiter=separator,
        quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL,
    )
    header: list[str] | None = None
    unquote = _unquoted if separator == "\t" else str
    while True:
        number = reader.line_num + 1
        try:
            cells = [unquote(cell) for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            # After a broken quote nothing tells where the next row begins.
            yield BadRow(line=number, message=f"malformed CSV: {error}", hint="fix the quotes")
            return
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _without_empty_end([name.strip() for name in cells])
            if fault := _fault(number, partial(_check_header, header, reading)):
                yield fault
                return
        elif [cell.strip() for cell in cells] == header and len(header) > 1:
            hint = "take it out: files that are put together keep one header"
            yield BadRow(line=number, message="the header stands here again", hint=hint)
        else:
            yield _row(number, header, cells, reading)


def _row(number: int, header: list[str], cells: list[str], reading: Reading) -> Row | BadRow:
    try:
        return row_of_values(number, _values(header, cells, reading), reading)
    except UsageError as fault:
        return BadRow(line=number, message=fault.message, hint=fault.hint)


def _fault(number: int, check: Callable[[], None]) -> BadRow | None:
    try:
        check()
    except UsageError as fault:
        return BadRow(line=number, message=fault.message, hint=fault.hint)
    return None


def _check_header(header: list[str], reading: Reading) -> None:
    """Raise UsageError for a header that is none."""
    for name in header:
        if header.count(name) > 1 and name not in _SEVERAL:
            raise UsageError(f"the column {name!r} is there twice", "give each column once")
    try:
        column = prompt_column(header, reading)
    except UsageError as error:
        if reading.prompt_column is not None:
            raise
        raise UsageError(
            f"the header has no prompt column: {', '.join(header)[:80]}", _column_hint(header)
        ) from error
    check_names(header, reading, column)


def _column_hint(header: list[str]) -> str:
    others = [name for name in header if name not in KEYS]
    if len(header) == 1:
        return "write a header with a column named prompt, or name the file .txt: a prompt a line"
    return "name one of them prompt, or say which it is" + (
        f": --prompt-column {others[0]}" if others else ""
    )


def _without_empty_end(cells: list[str]) -> list[str]:
    """The cells without the empty columns that spreadsheets leave at the right."""
    filled = [place for place, cell in enumerate(cells, start=1) if cell.strip()]
    return cells[: filled[-1]]


def _values(header: list[str], cells: list[str], reading: Reading) -> dict[str, Any]:
    cells = _without_empty_end(cells)
    if len(cells) > len(header):
        raise UsageError(
            f"{len(cells)} cells under {len(header)} columns",
            "put text that holds a separator in double quotes",
        )
    given = [(name, cell) for name, cell in zip(header, cells, strict=False) if cell.strip()]
    column = prompt_column(header, reading)
    values: dict[str, Any] = {column: None}
    values |= {name: cell if name == column else _number(name, cell) for name, cell in given}
    for several in _SEVERAL:
        if several in values:
            parts = (cell.split(";") for name, cell in given if name == several)
            values[several] = [part.strip() for part in chain.from_iterable(parts) if part.strip()]
    return values


def _unquoted(cell: str) -> str:
    found = _QUOTED.fullmatch(cell)
    return found[1].replace('""', '"') if found else cell


def _number(name: str, cell: str) -> Any:
    if name not in _NUMBERS:
        return cell
    if not cell.isascii() or "_" in cell:  # Python reads more as numbers than people do
        return cell.strip()
    try:
        number = float(cell)
        if name == "guidance":
            return number
        # A spreadsheet may write 7 as 7.0.
        return int(number) if "." in cell and number.is_integer() else int(cell)
    except ValueError:
        return cell.strip()
