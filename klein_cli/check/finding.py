"""What `klein doctor` found: one line, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from klein_cli.errors import KleinError

DISTRIBUTION = "klein-cli"

OK, NOTE, BAD, SKIPPED = "ok", "note", "bad", "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at.

    `state`: "ok"; "note", worth knowing and no fault; "bad", something that will fail or is wrong;
    "skipped", not looked at because of another fault. `said` in a line, `hint` what to do, `data`
    the numbers behind it, fit for JSON.
    """

    name: str
    state: str
    said: str
    hint: str = ""
    data: dict[str, Any] = field(default_factory=dict)


def guarded(name: str, look: Callable[[], Finding]) -> Finding:
    """A fault that keeps klein from looking is a finding too."""
    try:
        return look()
    except Exception as error:
        return unseen(name, error)


def unseen(name: str, error: Exception) -> Finding:
    if isinstance(error, KleinError):
        return Finding(name=name, state=BAD, said=error.message, hint=error.hint)
    said = f"could not be looked at: {type(error).__name__}: {error}"
    return Finding(name=name, state=BAD, said=said, hint=f"install {DISTRIBUTION} again")
