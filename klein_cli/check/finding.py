"""What `klein doctor` found: one line, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from klein_cli.errors import KleinError, first_line

DISTRIBUTION = "klein-cli"

OK, NOTE, BAD, SKIPPED = "ok", "note", "bad", "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked.

    `state`: "ok"; "note", worth knowing and not a fault; "bad", something that will fail or is
    wrong; "skipped", not checked because of another fault. `said` in a line, `hint` what to do,
    `data` the numbers behind it, fit for JSON.
    """

    name: str
    state: str
    said: str
    hint: str = ""
    data: dict[str, Any] = field(default_factory=dict)


def guarded(name: str, look: Callable[[], Finding]) -> Finding:
    """What `look` finds; whatever keeps it from looking is a finding too."""
    try:
        return look()
    except Exception as error:
        return failed(name, error)


def failed(name: str, error: Exception) -> Finding:
    """The finding that something could not be checked."""
    if isinstance(error, KleinError):
        return Finding(name, BAD, error.message, error.hint)
    said = f"could not be checked: {type(error).__name__}: {first_line(error)}"
    hint = f"install {DISTRIBUTION} again; if that does not help, report it, with --json"
    return Finding(name, BAD, said, hint)
