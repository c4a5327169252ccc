"""All that can change a bit, as a table of words: an engine will do if its table is one's own.

What torch would say is told by what it depends on: the same files of the same packages under the
same variables, on the same machine, choose and compute the same. So a client need not import it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from klein_cli.run.resident.machine import machine_lines, signatures
from klein_cli.settings import CHOICES, Settings

if TYPE_CHECKING:
    from klein_cli.checkpoints.resolve import Snapshot


def machine_facts() -> dict[str, str]:
    """Of this process: klein, Python, the packages, the processors and the variables."""
    return {name: hashed(lines) for name, lines in machine_lines().items()}


def model_facts(snapshot: Snapshot) -> dict[str, str]:
    """Of a model on disk: its name, and its files by size and time, so that none need be read.

    Not for one with files in place of its own.
    """
    return {
        "model": f"{snapshot.name} {snapshot.revision or ''}".strip(),
        "weights": hashed(signatures(str(snapshot.root))),
    }


def difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """The first fact that is not the same, by name; None when one is as good as the other."""
    return next((name for name in ours if ours[name] != theirs.get(name)), None)


def settings_differ(asked: Settings, theirs: Settings, chosen: Settings) -> str | None:
    """The first setting by which an image might differ, None if there is none.

    `theirs` are what the engine was started with, which were decided to be `chosen`: under the same
    facts, what asks for the same has the same decided, and what asks for the decision gets it.
    """
    return next(
        (
            f"--{name}"
            for name in CHOICES
            if getattr(asked, name) not in (getattr(theirs, name), getattr(chosen, name))
        ),
        None,
    )


def hashed(lines: Iterable[str]) -> str:
    """Lines as one short word."""
    hasher = hashlib.sha256()
    for line in lines:
        hasher.update(os.fsencode(line) + b"\n")
    return hasher.hexdigest()[:32]
