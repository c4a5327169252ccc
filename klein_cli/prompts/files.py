"""Prompts files, and prompts typed at a shell -> Rows.

The format is chosen by the file's ending: `.txt` (one prompt a line), `.jsonl` and `.json`, `.csv`
and `.tsv` (rows with the keys of `columns.KEYS`). A file is read as a stream, once. A line that
cannot be used becomes a BadRow and reading goes on, so that all of them are reported together;
nothing here opens a file but `read_rows`.

A prompt is never stripped, because the model's own pipeline does not strip it and a blank at its
end is a token: a `.txt` line loses its line ending and nothing else. Lines of blanks are skipped,
and so are lines whose first visible character is `#`; a prompt that needs either goes in a
`.jsonl` file. Only `\\n`, `\\r\\n` and `\\r` end a line, not the other separators of Unicode.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NoReturn

from klein_cli.errors import UsageError
from klein_cli.paths import check_path
from klein_cli.prompts.columns import BadRow, Reading, row_of_values
from klein_cli.prompts.csv_rows import parse_csv, parse_tsv
from klein_cli.prompts.json_rows import begins_many_lines, parse_jsonl
from klein_cli.prompts.option_lines import looks_like_options, row_of_options
from klein_cli.prompts.remarks import more
from klein_cli.prompts.rows import Row
from klein_cli.prompts.utf8 import MAX_LINE, decode, lines_of, too_long

STDIN = "-"
PROMPTS_FILES = (".txt", ".jsonl", ".json", ".csv", ".tsv")
"""How the names of prompts files end."""
_LISTED = 20
_Parse = Callable[[Iterable[str], Reading | None], Iterator[Row | BadRow]]


def read_rows(
    source: str, stdin: BinaryIO, reading: Reading | None = None
) -> Iterator[Row | BadRow]:
    """The rows of the prompts file `source`, read as they are asked for; `-` reads `stdin`.

    Raises UsageError when the file cannot be read as text or its ending is unknown.
    """
    check_path("--prompts-file", source)
    reading = reading or Reading()
    parse = _parser(source)
    with _opened(source, stdin) as file:
        yield from parse(lines_of(file, name_of(source)), reading)


def read_prompt(stdin: BinaryIO) -> str:
    """All of `stdin` as one prompt, less the line ending that `echo` adds. Raises UsageError."""
    data = stdin.read(MAX_LINE + 1)
    if len(data) > MAX_LINE:
        raise too_long(f"what comes from {name_of(STDIN)}")
    text = decode(data, name_of(STDIN))
    return text.removesuffix("\n").removesuffix("\r")


def name_of(source: str) -> str:
    """How messages name a prompts file; `source` is "" for a prompt typed at the shell."""
    return "standard input" if source == STDIN else source


def parse_txt(lines: Iterable[str], reading: Reading | None = None) -> Iterator[Row | BadRow]:
    """One prompt a line; blank lines and `#` comments are skipped."""
    reading = reading or Reading()
    for number, line in enumerate(map(_without_ending, lines), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                yield _of_line(number, line, reading)
            except UsageError as fault:
                yield BadRow(line=number, message=fault.message, hint=fault.hint)


def _of_line(number: int, line: str, reading: Reading) -> Row:
    if reading.options_in_prompts:
        return row_of_options(number, line, reading)
    if looks_like_options(line):
        reading.remarks.warn(
            "options (--prompt, --steps, -s4 ...) are taken as words, as all of a .txt line is: "
            "--options-in-prompts reads them; or rows with options go into .jsonl or .csv",
            number,
        )
    if "\t" in line.strip():
        reading.remarks.warn("a tab is part of the prompt: name a table .tsv", number)
    return row_of_values(number, {"prompt": line}, Reading(remarks=reading.remarks))


def parse_undeclared(
    lines: Iterable[str], reading: Reading | None = None
) -> Iterator[Row | BadRow]:
    """From a pipe, which has no name to tell its format: JSON where the first line that is not
    blank is an object with a prompt, or begins an array or an object; else a prompt a line.
    """
    lines = iter(lines)
    head: list[str] = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    is_json = bool(head) and (_is_row(head[-1]) or begins_many_lines(head[-1]))
    parse = parse_jsonl if is_json else parse_txt
    return parse(chain(head, lines), reading)


def _is_row(line: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and any(key.lower() in ("prompt", "prompts") for key in value)


def refuse_rows(source: str, bad_rows: Iterable[BadRow]) -> NoReturn:
    """Raise one UsageError that names every bad line of `source`: a fault that many share once,
    with their number, and the first twenty faults in full.
    """
    bad_rows = list(bad_rows)
    name = name_of(source)
    alike: dict[tuple[str, str], list[BadRow]] = {}
    for fault in bad_rows:
        alike.setdefault((fault.message, fault.hint), []).append(fault)
    if len(alike) == 1:
        ((message, hint),) = alike
        where = f"{name} line {bad_rows[0].line}{more(len(bad_rows) - 1)}: " if source else ""
        raise UsageError(where + message, hint)
    shown = [
        f"  line {faults[0].line}{more(len(faults) - 1)}: {message} ({hint})"
        for (message, hint), faults in list(alike.items())[:_LISTED]
    ]
    if rest := sum(len(faults) for faults in list(alike.values())[_LISTED:]):
        shown.append(f"  and {rest} more")
    raise UsageError(
        "\n".join([f"{name} has {len(bad_rows)} bad lines", *shown]),
        "fix these lines; no image was made",
    )


def _parser(source: str) -> _Parse:
    suffix = "" if source == STDIN else Path(source).suffix.lower()
    # No ending is what a shell's process substitution gives.
    parsers: dict[str, _Parse] = {
        "": parse_undeclared,
        ".txt": parse_txt,
        ".jsonl": parse_jsonl,
        ".json": parse_jsonl,
        ".csv": parse_csv,
        ".tsv": parse_tsv,
    }
    if suffix not in parsers:
        raise UsageError(
            f"{source} is not a prompts file that klein can read",
            "use .txt (one prompt a line), .jsonl, .json, .csv or .tsv",
        )
    return parsers[suffix]


@contextmanager
def _opened(source: str, stdin: BinaryIO) -> Iterator[BinaryIO]:
    try:
        if source == STDIN:
            yield stdin
        else:
            with open(source, "rb") as file:
                yield file
    except OSError as error:
        raise UsageError(
            f"cannot read {name_of(source)}: {error.strerror or error}",
            "check the path and its permissions",
        ) from None


def _without_ending(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")
