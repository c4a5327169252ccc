"""Wildcards in prompts: `a {red|blue} circle` -> one of its two prompts, chosen by a seed.

Groups may stand inside groups, and a choice may be empty. A backslash before one of
`{|}$:_\\` makes it plain text. Braces around no `|` of their own are plain text too, so that a
prompt written as JSON needs no backslashes; groups inside them are still chosen.

    {2$$a|b|c}  {2$$ and $$a|b|c}  {1-2$$a|b|c}   several, none twice, with what joins them
    {0.5::a|2::b|c}                               weights; 1 where none is written
    __colour__  __animals/cats__                  a line of a file, see `wildcard_files`

The n-th group's choice depends on the seed and on n alone, by a hash: it is the same on every
machine and in every version, and changing a word, or a choice of another group, does not move it.
A wildcard counts as a group; those within a line of its file are numbered below it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from klein_cli.errors import UsageError
from klein_cli.prompts.wildcard_files import WildcardFiles

_SPECIAL = "{|}\\"
_ESCAPED = "{|}\\$:_"
_NAME = re.compile(r"__((?:[^\W_]|[-./]|_(?!_))+)__")
_COUNT = re.compile(
    r"\s*(?:(\d{1,4})|(\d{1,4})?-(\d{1,4})?)\$\$(?:((?:(?!\$\$).)*)\$\$)?", re.DOTALL
)
_WEIGHT = re.compile(r"\s*(\d{1,6}(?:\.\d{0,6})?|\.\d{1,6})::")
_JOINED_BY = ", "
_DEEPEST = 16


@dataclass(frozen=True, slots=True)
class _Plain:
    """Text that nothing in it changes: it was written with a backslash."""

    text: str


@dataclass(frozen=True, slots=True)
class _Wild:
    """`__name__`, a group by its number."""

    name: str
    number: int
    at: int


@dataclass(slots=True)
class _Group:
    """`{...}` as it was read: choices of pieces; `number` counts from 0.

    `weights` are those of the choices, and `count` the fewest and the most of them that are taken
    (None: all there are), itself None for one that nobody counted; `joined_by` stands between
    several.
    """

    number: int
    opened_at: int
    choices: list[list[_Piece]] = field(default_factory=lambda: [[]])
    weights: list[float] | None = None
    count: tuple[int, int | None] | None = None
    joined_by: str = _JOINED_BY


_Piece = str | _Plain | _Wild | _Group


def chosen(template: str, seed: int, files: WildcardFiles | None = None) -> str:
    """`template` with every group replaced by one of its choices, and every wildcard by a line of
    its file. Raises UsageError for what is not understood.
    """
    if not any(character in template for character in _SPECIAL) and "__" not in template:
        return template
    return _Chooser(seed, files).text(_read(template).choices[0], "", 0)


def _read(template: str) -> _Group:
    """The template as a group of one choice."""
    whole = _Group(number=-1, opened_at=-1)
    open_groups, count, at = [whole], 0, 0
    while at < len(template):
        group, character = open_groups[-1], template[at]
        wild = _NAME.match(template, at)
        if character == "\\":
            escaped = template[at + 1 : at + 2]
            plain = escaped != "" and escaped in _ESCAPED
            group.choices[-1].append(_Plain(escaped if plain else character + escaped))
            at += 1
        elif wild:
            group.choices[-1].append(_Wild(wild[1], count, at))
            count, at = count + 1, wild.end() - 1
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
            _read_operators(open_groups.pop())
        else:
            _add_text(group.choices[-1], character)
        at += 1
    if open_groups[-1] is not whole:
        raise _unpaired("{", open_groups[-1].opened_at)
    return whole


def _add_text(pieces: list[_Piece], character: str) -> None:
    if pieces and isinstance(pieces[-1], str):
        pieces[-1] += character
    else:
        pieces.append(character)


def _read_operators(group: _Group) -> None:
    """Take the count and the weights of a group out of its choices' text. Raises UsageError."""
    counted = _COUNT.match(_beginning(group.choices[0]))
    if counted:
        fewest, most = counted[1] or counted[2] or "1", counted[1] or counted[3]
        group.count = int(fewest), None if most is None else int(most)
        group.joined_by = _JOINED_BY if counted[4] is None else counted[4]
        _drop(group.choices[0], counted.end())
    if len(group.choices) < 2 and group.count is None:
        return
    weights = [_weight(choice) for choice in group.choices]
    if any(weight != 1.0 for weight in weights):
        group.weights = weights
    for choice in group.choices:
        for text in (piece for piece in choice if isinstance(piece, str)):
            for operator in ("$$", "::"):
                if operator in text:
                    raise UsageError(
                        f"the wildcards have a {operator} that is not understood in the group at "
                        f"character {group.opened_at + 1}",
                        "write {2$$a|b} or {0.5::a|b}; plain text is written \\$$ and \\::",
                    )
    if group.weights is not None and not sum(group.weights):
        raise UsageError(
            f"all weights of the group at character {group.opened_at + 1} are 0",
            "give one of its choices another",
        )


def _is_wild(group: _Group) -> bool:
    """Whether it has one choice, which is a wildcard: its lines are what is counted."""
    wild = [piece for piece in group.choices[0] if isinstance(piece, _Wild)]
    return len(group.choices) == 1 and len(wild) == 1


def _beginning(choice: Sequence[_Piece]) -> str:
    return choice[0] if choice and isinstance(choice[0], str) else ""


def _drop(choice: list[_Piece], characters: int) -> None:
    """Take so many characters from the text that a choice begins with."""
    rest = _beginning(choice)[characters:]
    choice[:1] = [rest] if rest else []


def _weight(choice: list[_Piece]) -> float:
    found = _WEIGHT.match(_beginning(choice))
    if not found:
        return 1.0
    _drop(choice, found.end())
    return float(found[1])


@dataclass(frozen=True, slots=True)
class _Chooser:
    """Makes the choices of one seed, with wildcards from `files`."""

    seed: int
    files: WildcardFiles | None

    def text(self, pieces: Sequence[_Piece], above: str, depth: int) -> str:
        """The pieces of a choice in words; `above` numbers the wildcard that they stand in."""
        return "".join(self._piece(piece, above, depth) for piece in pieces)

    def _piece(self, piece: _Piece, above: str, depth: int) -> str:
        if isinstance(piece, str):
            return piece
        if isinstance(piece, _Plain):
            return piece.text
        if isinstance(piece, _Wild):
            lines = self._lines(piece, depth)
            key = f"{above}{piece.number}"
            line = lines[self._number(key) % len(lines)]
            return self.text(_read(line).choices[0], f"{key}.", depth + 1)
        if piece.count is not None:
            return self._several(piece, piece.count, above, depth)
        if len(piece.choices) == 1:
            return "{" + self.text(piece.choices[0], above, depth) + "}"
        index = self._index(f"{above}{piece.number}", piece.weights or len(piece.choices))
        return self.text(piece.choices[index], above, depth)

    def _several(self, group: _Group, count: tuple[int, int | None], above: str, depth: int) -> str:
        """As many of a group's choices as it asks for, none twice."""
        key = f"{above}{group.number}"
        choices: list[Sequence[_Piece]] = list(group.choices)
        inside = above
        if _is_wild(group):
            (wild,) = (piece for piece in group.choices[0] if isinstance(piece, _Wild))
            choices = [_read(line).choices[0] for line in self._lines(wild, depth)]
            inside, depth = f"{above}{wild.number}.", depth + 1
        fewest, most = count[0], len(choices) if count[1] is None else count[1]
        if max(fewest, most) > len(choices) or fewest > most:
            raise UsageError(
                f"the group at character {group.opened_at + 1} asks for {max(fewest, most)} of "
                f"{len(choices)}",
                "ask for fewer of them, the smaller number first",
            )
        wanted = fewest + self._number(f"{key} count") % (most - fewest + 1)
        weights = list(group.weights or [1.0] * len(choices))
        taken = []
        for place in range(min(wanted, sum(weight > 0 for weight in weights))):
            index = self._index(f"{key} {place}", weights)
            taken.append(self.text(choices.pop(index), inside, depth))
            weights.pop(index)
        return group.joined_by.join(taken)

    def _lines(self, wild: _Wild, depth: int) -> Sequence[str]:
        if self.files is None:
            raise UsageError(
                f"__{wild.name}__ at character {wild.at + 1} is a wildcard, and there are no files",
                "name their folder: --wildcards-dir DIR; plain text is written \\__",
            )
        if depth >= _DEEPEST:
            raise UsageError(
                f"the wildcard __{wild.name}__ leads to itself", "take it out of its own lines"
            )
        return self.files.lines(wild.name, wild.at)

    def _index(self, key: str, weights: int | Sequence[float]) -> int:
        """Which of so many choices, or of those with weights."""
        number = self._number(key)
        if isinstance(weights, int):
            return number % weights
        left = number / 2**64 * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0 and weight:
                return index
        return max(index for index, weight in enumerate(weights) if weight)

    def _number(self, key: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed} {key}".encode()).digest()[:8])


def _unpaired(brace: str, at: int) -> UsageError:
    return UsageError(
        f"the wildcards have a {brace} without its pair at character {at + 1}",
        f"write {{a|b}}, or \\{brace} for a plain brace",
    )
