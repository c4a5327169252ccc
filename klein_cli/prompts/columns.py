"""What a row's keys, or a table's columns, mean: klein's own, the prompt, or carried along.

Files of benchmarks have columns of their own (Category, tag, include ...). Beside a column that is
plainly the prompt they are carried into the manifest; a key that looks like one of klein's own and
is not is an error, since it was meant to do something.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import SequenceMatcher
from typing import Any

from klein_cli.errors import UsageError
from klein_cli.prompts.remarks import Remarks, listed
from klein_cli.prompts.rows import MAX_IMAGES, Row, prompt_fault, text_fault
from klein_cli.prompts.sizes import checked_expand, parse_expand
from klein_cli.tables import WrongTypeError, checked, shortened

_OWN = ("line", "name", "carried")
KEYS = tuple(field.name for field in fields(Row) if field.name not in _OWN)
IGNORED_KEYS = ("error",)
"""What klein itself writes into failed.jsonl and does not need to read again."""

_PROMPTS = ("prompt", "prompts")
ELSEWHERE = {
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "guidance_scale": "guidance",
    "num_inference_steps": "steps",
    "sampling_steps": "steps",
    "negative": "negative_prompt",
    "negativeprompt": "negative_prompt",
    "num_images": "n",
    "n_iter": "n",
    "count_images": "n",
    "w": "width",
    "h": "height",
}
"""What other programs call klein's keys."""

_EXAMPLES = {
    "image": '"photo.jpg" or ["photo.jpg", "style.png"]',
    "lora": '"style.safetensors=0.8" or ["style.safetensors", "light.safetensors=0.5"]',
}
"""The keys that are paths, one or several, as they are written."""

_ALIKE = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A line that cannot be used: what is wrong with it and what to do."""

    line: int
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a prompts file is read: which column holds the prompt, if the user said so, and whether
    lines of text hold options. The `remarks` gather what there is to say of it.
    """

    prompt_column: str | None = None
    options_in_prompts: bool = False
    remarks: Remarks = field(default_factory=Remarks)


def prompt_column(names: Iterable[str], reading: Reading) -> str:
    """The one of a row's names that holds the prompt. Raises UsageError where none plainly does."""
    names = list(names)
    if reading.prompt_column is not None:
        if reading.prompt_column in names:
            return reading.prompt_column
        raise UsageError(
            f"there is no column {reading.prompt_column!r}", f"the columns are {listed(names)}"
        )
    for name in (*_PROMPTS[:1], *names):
        if name in names and name.lower() in _PROMPTS:
            return name
    others = [name for name in names if name not in KEYS]
    hint = 'every row needs a "prompt"'
    if others:
        hint += f", or say which it is: --prompt-column {shortened(others[0])}"
    raise UsageError("there is no prompt", hint)


def check_names(names: Iterable[str], reading: Reading, prompt: str) -> None:
    """Raise UsageError for a name that was meant for one of klein's own."""
    for name in names:
        if name == prompt or name in (*KEYS, *IGNORED_KEYS):
            continue
        meant = ELSEWHERE.get(name.lower()) or _alike(name)
        if meant:
            raise UsageError(
                f"unknown key {name!r}", f"did you mean {meant}? the keys are {', '.join(KEYS)}"
            )


def row_of_values(line: int, values: Mapping[str, Any], reading: Reading) -> Row:
    """A row of what a line says. Raises UsageError."""
    column = prompt_column(values, reading)
    check_names(values, reading, column)
    known = {key: values[key] for key in KEYS if key != column and values.get(key) is not None}
    carried = {key: values[key] for key in values if key not in (*KEYS, *IGNORED_KEYS, column)}
    if column != "prompt" and "prompt" in known:
        carried["prompt"] = known["prompt"]
    if values[column] is None:
        raise UsageError("there is no prompt", 'every row needs a "prompt"')
    _remark(column, carried, line, reading)
    return _row(line, {**known, "prompt": values[column]}, carried)


def _row(line: int, given: dict[str, Any], carried: dict[str, Any]) -> Row:
    for key in _EXAMPLES:
        if key in given:
            given[key] = _paths(key, given[key])
    for key, read in (("expand", _expand), ("id", _id)):
        if key in given:
            given[key] = read(given[key])
    try:
        given = checked(Row, given)
    except WrongTypeError as error:
        raise UsageError(
            f"{error.name} must be {error.wanted}, not {shown(error.value)}",
            f"write {error.name} as {error.wanted}",
        ) from None
    fault = prompt_fault(given["prompt"]) or text_fault(
        "negative_prompt", given.get("negative_prompt", "")
    )
    if fault:
        raise UsageError(*fault)
    if not 1 <= given.get("n", 1) <= MAX_IMAGES:
        raise UsageError(f"n {given['n']} is out of range", f"use 1 to {MAX_IMAGES}")
    if "guidance" in given:
        given["guidance"] = _decimal(given["guidance"])
    return Row(line=line, carried=carried, **given)


def shown(value: object) -> str:
    """A value as a message shows it."""
    return shortened(json.dumps(value, ensure_ascii=False))


def _remark(column: str, carried: Mapping[str, Any], line: int, reading: Reading) -> None:
    if column != "prompt":
        reading.remarks.note(f"the prompts are those of the column {column}", line)
    reading.remarks.carry(carried)


def _alike(name: str) -> str | None:
    """The key of klein's that a name is, but for a slip of the fingers."""
    low = name.strip().lower().replace("-", "_").replace(" ", "_")
    for key in KEYS:
        is_near = low[:1] == key[:1] and min(len(low), len(key)) > 2
        if low == key or (is_near and SequenceMatcher(None, low, key).ratio() >= _ALIKE):
            return key
    return None


def _paths(key: str, value: Any) -> list[str]:
    """A path or a list of paths; an adapter's may end in its weight."""
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise UsageError(
            f"{key} must be a path or a list of paths, not {shown(value)}",
            f"write it as {_EXAMPLES[key]}",
        )
    if not all(path.strip() and "\0" not in path for path in paths):
        raise UsageError(f"{key} holds an empty path", "leave it out")
    return paths


def _expand(value: Any) -> tuple[int, int, int, int]:
    """Pixels for all edges, or for each, as numbers or as --expand takes them."""
    if isinstance(value, str):
        return parse_expand(value)
    sides = [value] * 4 if type(value) is int else value
    if not isinstance(sides, list) or [type(side) for side in sides] != [int] * 4:
        raise UsageError(
            f"expand must be pixels, not {shown(value)}",
            "write 64 for all edges, or [left, top, right, bottom]",
        )
    return checked_expand(sides)


def _decimal(value: float) -> float:
    """4 and 4.0 are one guidance, and rows that differ in nothing else are one row."""
    try:
        return float(value)
    except OverflowError:
        raise UsageError("guidance is out of range", "use a number such as 4") from None


def _id(value: Any) -> Any:
    """A number names a row as well as text does."""
    return str(value) if type(value) is int else value
