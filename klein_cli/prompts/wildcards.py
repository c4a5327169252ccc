"""Wildcards in prompts: `a {red|blue} circle` -> one of its two prompts, chosen by a seed.

Groups may stand inside groups, and a choice may be empty. A backslash before `{`, `|`, `}` or `\\`
makes it plain text. Braces around no `|` of their own are plain text too, so that a prompt written
as JSON needs no backslashes; groups inside them are still chosen.

The n-th group's choice depends on the seed and on n alone, by a hash: it is the same on every
machine and in every version, and changing a word, or a choice of another group, does not move it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from klein_cli.errors import UsageError

_SPECIAL = "{|}\\"


@dataclass(slots=True)
class _Group:
    """`{...}` as it was read: choices of pieces, each a text or a group; `number` counts from 0."""

    number: int
    opened_at: int
    choices: list[list[str | _Group]] = field(default_factory=lambda: [[]])


def chosen(template: str, seed: int) -> str:
    """`template` with every group replaced by one of its choices. Raises UsageError."""
    if not any(character in template for character in _SPECIAL):
        return template
    return "".join(_text(piece, seed) for piece in _read(template).choices[0])


def _read(template: str) -> _Group:
    """The template as a group of one choice."""
    whole = _Group(number=-1, opened_at=-1)
    open_groups, count = [whole], 0
    characters = iter(enumerate(template))
    for at, character in characters:
        group = open_groups[-1]
        if character == "\\":
            _, escaped = next(characters, (at, ""))
            plain = escaped and escaped in _SPECIAL
            group.choices[-1].append(escaped if plain else character + escaped)
        elif character == "{":
            inner = _Group(number=count, opened_at=at)
            count += 1
            group.choices[-1].append(inner)
            open_groups.append(inner)
        elif character == "|" and group is not whole:
            group.choices.append([])
        elif character == "}":
            if group is whole:
                raise _unpaired("}", at)
            open_groups.pop()
        else:
            group.choices[-1].append(character)
    if open_groups[-1] is not whole:
        raise _unpaired("{", open_groups[-1].opened_at)
    return whole


def _text(piece: str | _Group, seed: int) -> str:
    if isinstance(piece, str):
        return piece
    if len(piece.choices) == 1:
        return "{" + "".join(_text(inner, seed) for inner in piece.choices[0]) + "}"
    digest = hashlib.sha256(f"{seed} {piece.number}".encode()).digest()
    choice = piece.choices[int.from_bytes(digest[:8]) % len(piece.choices)]
    return "".join(_text(inner, seed) for inner in choice)


def _unpaired(brace: str, at: int) -> UsageError:
    return UsageError(
        f"the wildcards have a {brace} without its pair at character {at + 1}",
        f"write {{a|b}}, or \\{brace} for a plain brace",
    )
