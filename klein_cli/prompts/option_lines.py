"""Options in a line of text, as AUTOMATIC1111's script and InvokeAI's shell read them -> a row.

    --prompt "a red circle" --negative_prompt "blur" --width 256 --steps 4 --cfg_scale 7 --seed 9
    a blue star --steps 8
    an orange square -n4 -S77 -W512 -H512

They are read where --options-in-prompts asks for it. Options that klein has nothing for (samplers,
upscalers) are left out, and that is said once.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from klein_cli.errors import UsageError
from klein_cli.prompts.columns import ELSEWHERE, KEYS, Reading, row_of_values
from klein_cli.prompts.rows import Row

_LETTERS = {"s": "steps", "S": "seed", "n": "n", "W": "width", "H": "height", "C": "guidance"}
"""InvokeAI's, whose values stand behind them with a blank or without."""

_NUMBERS = {"seed": int, "steps": int, "width": int, "height": int, "n": int, "guidance": float}
_SWITCHES = (
    "restore_faces",
    "tiling",
    "do_not_save_samples",
    "do_not_save_grid",
    "seamless",
    "hires_fix",
)
_LONG = re.compile(
    r"(?:^|\s)--(prompt|negative_prompt|steps|seed|width|height|cfg_scale|sampler_name|sampler_index"
    r"|batch_size|n_iter|iterations|sampler)(?=[\s=]|$)"
)
_SHORT = re.compile(r"\s-([sSnWHCA])\s?\d+(?:\.\d+)?(?=\s|$)")


def looks_like_options(line: str) -> bool:
    """Whether there is an option of other programs in a line."""
    return bool(_LONG.search(line) or _SHORT.search(line))


def row_of_options(number: int, line: str, reading: Reading) -> Row:
    """The row that a line with options is. Raises UsageError."""
    if not looks_like_options(line):
        return row_of_values(number, {"prompt": line}, Reading(remarks=reading.remarks))
    try:
        words = shlex.split(line, posix=True)
    except ValueError:
        # An apostrophe is no quote: only what is wholly in quotes is put together.
        words = line.split()
    values = _values(words, number, reading)
    return row_of_values(number, values, Reading(remarks=reading.remarks))


def _values(words: list[str], number: int, reading: Reading) -> dict[str, Any]:
    prompt: list[str] = []
    values: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        option, said = _option(word)
        if option is None:
            prompt.append(word)
            continue
        key = _key(option)
        if option in _SWITCHES:
            reading.remarks.note(f"left out: --{option} of other programs", number)
            continue
        value = next(rest, None) if said is None else said
        if value is None:
            raise UsageError(f"{word} has no value", "write one behind it")
        if key is None:
            reading.remarks.note(f"left out: --{option} of other programs", number)
        else:
            values[key] = _value(key, value)
    if "prompt" not in values:
        values["prompt"] = " ".join(prompt)
    elif prompt:
        raise UsageError(f"there are words beside --prompt: {prompt[0]!r}", "put it in quotes")
    return values


def _option(word: str) -> tuple[str | None, str | None]:
    """An option's name and its value, if that stands in the same word; (None, None) for words."""
    found = re.fullmatch(r"--([a-zA-Z][\w-]*)(?:=(.*))?", word, re.DOTALL)
    if found:
        return found[1].replace("-", "_"), found[2]
    found = re.fullmatch(r"-([sSnWHCA])(\d+(?:\.\d+)?)?", word)
    return (found[1], found[2]) if found else (None, None)


def _key(option: str) -> str | None:
    """What klein calls it, None for what it has nothing for."""
    if option in _LETTERS:
        return _LETTERS[option]
    key = {"iterations": "n"}.get(option) or ELSEWHERE.get(option, option)
    return key if key in KEYS else None


def _value(key: str, value: str) -> Any:
    kind = _NUMBERS.get(key, str)
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"{key} takes a number, not {value[:40]!r}", "correct the line") from None
