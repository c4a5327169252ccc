"""Which GPUs a build of torch holds code for.

Imports no torch: `klein doctor` asks it of a torch in another process.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ARCHITECTURE = re.compile(r"(sm|compute)_([0-9]+)([0-9])([af]?)")


def built_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether a torch built for these architectures ("sm_90", "compute_90") runs on a GPU.

    Machine code runs on later GPUs of its major version, code that the driver compiles on all
    later ones; a letter behind the number binds either to that very GPU ("a") or family ("f").
    """
    return any(_runs(capability, architecture) for architecture in architectures)


def _runs(capability: tuple[int, int], architecture: str) -> bool:
    found = _ARCHITECTURE.fullmatch(architecture)
    if found is None:
        return False
    kind, major, minor, letter = found.groups()
    target = int(major), int(minor)
    if letter == "a":
        return target == capability
    if kind == "sm" or letter == "f":
        return target[0] == capability[0] and target <= capability
    return target <= capability
