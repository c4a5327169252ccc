"""What is worth saying of the rows of a run: each thing once, with where it was and how often."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from klein_cli.tables import shortened

_NAMES = 8


@dataclass(slots=True)
class Remarks:
    """Gathers remarks while rows are read; `warnings` may spoil images, `notes` do not."""

    _first: dict[tuple[bool, str], int] = field(default_factory=dict)
    _count: dict[tuple[bool, str], int] = field(default_factory=dict)
    _carried: dict[str, None] = field(default_factory=dict)
    _told: set[tuple[bool, str]] = field(default_factory=set)

    def warn(self, text: str, line: int) -> None:
        """Something that may not be meant; `line` 0 is a prompt that was typed."""
        self._add((True, text), line)

    def note(self, text: str, line: int) -> None:
        """Something that is done with what a row says."""
        self._add((False, text), line)

    def carry(self, names: Iterable[str]) -> None:
        """Names that are no keys of klein's, and go into the manifest."""
        self._carried.update(dict.fromkeys(names))

    def fresh(self) -> Iterator[tuple[bool, str]]:
        """What no `fresh` has given yet, as (whether it is a warning, text)."""
        for kind, line in self._first.items():
            if kind not in self._told:
                self._told.add(kind)
                yield kind[0], f"line {line}: {kind[1]}" if line else kind[1]
        new = [name for name in self._carried if (False, name) not in self._told]
        self._told.update((False, name) for name in new)
        if new:
            yield False, f"carried along: {listed(new)}"

    def warnings(self) -> Iterator[str]:
        """Each once: its first line, and how many more there are."""
        return self._said(warning=True)

    def notes(self) -> Iterator[str]:
        """Each once, as `warnings`, but without a line: they hold for the file."""
        yield from self._said(warning=False)
        if self._carried:
            yield f"carried along into the manifest: {listed(self._carried)}"

    def _add(self, kind: tuple[bool, str], line: int) -> None:
        self._first.setdefault(kind, line)
        self._count[kind] = self._count.get(kind, 0) + 1

    def _said(self, *, warning: bool) -> Iterator[str]:
        for (is_warning, text), line in self._first.items():
            if is_warning != warning:
                continue
            where = f"line {line}{more(self._count[is_warning, text] - 1)}: " if line else ""
            yield where + text if warning else text


def listed(names: Iterable[str]) -> str:
    """Names from a file in a line, the first eight of them."""
    names = list(names)
    rest = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(shortened(name) for name in names[:_NAMES]) + rest


def more(lines: int) -> str:
    """How many other lines are like one: " and 552 more lines", or nothing."""
    return f" and {lines} more line{'s' * (lines != 1)}" if lines else ""


_SYNTAX = (
    (re.compile(r"\([^()]*[^()\d\s]\s*:\s*\d*\.?\d+\s*\)"), "(word:1.3)"),
    (re.compile(r"\[[^][]*:\s*\d*\.\d+\s*\]|\[[^][]*:[^][]*:\s*\d+\s*\]"), "[a:b:0.5]"),
    (re.compile(r"(?<![\w\"'])BREAK(?![\w\"'])"), "BREAK"),
)
_ADAPTER = re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>")


def remark_on_words(prompt: str, line: int, remarks: Remarks) -> None:
    """Warn of what other programs take for instructions, and klein for words."""
    for syntax, shown in _SYNTAX:
        if syntax.search(prompt):
            remarks.warn(f"{shown} is taken as words: klein knows no weights in prompts", line)
    if _ADAPTER.search(prompt):
        remarks.warn("<lora:name> is taken as words: adapters are named by --lora", line)
