"""Rows -> Recipes: what a line says, what it leaves to the options, and how many pictures it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TypeVar

from klein_cli.errors import UsageError
from klein_cli.prompts.wildcards import chosen
from klein_cli.recipe import Recipe

T = TypeVar("T")

MAX_PICTURES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a prompts file: a prompt and what it says for itself; None means unsaid.

    `line` counts from 1; 0 is a prompt that was typed at the shell.
    """

    prompt: str
    line: int = 0
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    output: str | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a recipe gets where its row is silent: from the options, else from the preset.

    `seeds` sweeps: every prompt that says neither seed nor n is drawn once with each of them.
    With `wildcards`, groups such as {a|b} in a prompt are chosen by each picture's seed.
    """

    model: str
    width: int
    height: int
    steps: int
    guidance: float
    negative_prompt: str | None = None
    n: int = 1
    seeds: tuple[range, ...] = ()
    wildcards: bool = False


def own_seeds(row: Row, defaults: Defaults) -> Iterator[int | None]:
    """One entry a picture of the row, in order: its seed, or None where it takes the run's.

    A row with seed s and n pictures makes s, s + 1, ... Raises UsageError when the row and a
    sweep both say how many pictures there are.
    """
    if defaults.seeds and row.seed is None:
        if row.n is not None:
            raise UsageError("n and --seeds both say how many pictures", "leave one of them out")
        return chain.from_iterable(defaults.seeds)
    count = _first(row.n, 1 if defaults.seeds else defaults.n)
    return repeat(None, count) if row.seed is None else iter(range(row.seed, row.seed + count))


def recipe_of(row: Row, defaults: Defaults, seed: int) -> Recipe:
    """One picture of the row. Raises UsageError when a value cannot make a picture."""
    prompt = row.prompt
    if defaults.wildcards:
        prompt = chosen(prompt, seed)
        fault = prompt_fault(prompt)
        if fault:
            raise UsageError(*fault)
    return Recipe(
        prompt=prompt,
        seed=seed,
        width=_first(row.width, defaults.width),
        height=_first(row.height, defaults.height),
        steps=_first(row.steps, defaults.steps),
        guidance=_first(row.guidance, defaults.guidance),
        model=defaults.model,
        negative_prompt=_first(row.negative_prompt, defaults.negative_prompt),
    )


def prompt_fault(prompt: str) -> tuple[str, str] | None:
    """Why `prompt` cannot be used, as (message, hint), or None."""
    if not prompt.strip():
        return "the prompt is empty", "say what to draw"
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        what = f"the prompt is not valid Unicode (character {error.start + 1})"
        return what, "write the prompt as UTF-8"
    return None


def _first(own: T | None, default: T) -> T:
    return default if own is None else own
