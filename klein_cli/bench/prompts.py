"""Prompts to time with: never the same twice, since equal prompts are encoded only once."""

from __future__ import annotations

from itertools import islice

_SUBJECTS = (
    "a lighthouse on a cliff",
    "an old fisherman with a grey beard",
    "two cats asleep on a windowsill",
    "a red bicycle against a stone wall",
    "a market square in the rain",
    "a glass of water on a wooden table",
    "a tram that climbs a steep street",
    "a harbour full of small boats",
)
_DETAILS = (
    "soft morning light",
    "long shadows on the ground",
    "birds far away over the hills",
    "a blue door half open",
    "wet leaves in the foreground",
    "a painted sign that nobody can read",
    "smoke from a chimney",
    "a child with a yellow umbrella",
    "snow on the roofs",
    "a clock that stands at noon",
)
_FEW = 3
_STRIDE = 7
_MOST = 16


def alike(number: int) -> str:
    """The prompt called `number`, of about a sentence, as all of its kind."""
    return _prompt(number, _FEW)


def of_all_lengths(count: int) -> list[str]:
    """`count` prompts from a few words to a long paragraph, short and long taking turns."""
    return [_prompt(number, number * _STRIDE % _MOST) for number in range(count)]


def _prompt(number: int, details: int) -> str:
    repeated = (_DETAILS[(number + at) % len(_DETAILS)] for at in range(details))
    parts = (_SUBJECTS[number % len(_SUBJECTS)], *islice(repeated, details), f"number {number}")
    return ", ".join(parts)
