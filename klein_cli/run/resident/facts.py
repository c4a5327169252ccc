"""All that can change a bit, as a table of words: an engine will do if its table is one's own.

What torch would say is told by what it depends on: the same files of the same packages under the
same variables, on the same machine, choose and compute the same. So a client need not import it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from klein_cli import __version__
from klein_cli.settings import CHOICES, Settings

if TYPE_CHECKING:
    from klein_cli.checkpoints.resolve import Snapshot

_VARIABLES = (
    *("ATEN_", "CUBLAS", "CUDA", "CUDNN", "DNNL", "GOMP", "KMP_", "MKL", "NVIDIA_", "OMP_"),
    *("ONEDNN", "OPENBLAS", "PYTORCH_", "TORCH", "TRITON_"),
)
"""How variables begin that a library of numbers may read."""
_HUB = ("HF_HOME", "HF_HUB_CACHE")
_SET_BY_KLEIN = ("OMP_WAIT_POLICY", "CUDA_MODULE_LOADING")
"""By klein itself as it starts; they change no bit."""


def machine_facts() -> dict[str, str]:
    """Of this process: klein, Python, the packages, the processors and the variables."""
    return {
        "klein": f"{__version__} {_hash(_signatures(Path(__file__).parents[2]))}",
        "python": f"{sys.prefix} {sys.version}",
        "packages": _hash(_packages()),
        "processors": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0),
        "environment": _hash(_variables()),
    }


def model_facts(snapshot: Snapshot) -> dict[str, str]:
    """Of a model on disk: its name, and its files by size and time, so that none need be read.

    Not for one with files in place of its own.
    """
    return {
        "model": f"{snapshot.name} {snapshot.revision or ''}".strip(),
        "weights": _hash(_signatures(snapshot.root)),
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


def _packages() -> list[str]:
    """What is installed, in which version: the names of the folders that say so."""
    found: set[str] = set()
    for place in dict.fromkeys(sys.path):
        try:
            found |= {name for name in os.listdir(place or ".") if name.endswith(".dist-info")}
        except OSError:
            continue
    return sorted(found)


def _variables() -> list[str]:
    return sorted(
        f"{name}={value}"
        for name, value in os.environ.items()
        if (name.startswith(_VARIABLES) or name in _HUB) and name not in _SET_BY_KLEIN
    )


def _signatures(root: Path) -> Iterable[str]:
    """Each file below a folder by its name, size and time, in order; caches left out."""
    for folder, inside, files in os.walk(root):
        inside[:] = sorted(name for name in inside if name != "__pycache__")
        for name in sorted(files):
            path = os.path.join(folder, name)
            found = os.stat(path)
            yield f"{os.path.relpath(path, root)}\0{found.st_size}\0{found.st_mtime_ns}"


def _hash(lines: Iterable[str]) -> str:
    hasher = hashlib.sha256()
    for line in lines:
        hasher.update(os.fsencode(line) + b"\n")
    return hasher.hexdigest()[:32]
