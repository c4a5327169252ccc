"""What a process computes with, as lines of text: equal lines, equal bits.

Imports next to nothing: the shortest way to an engine begins with these lines (`cli.quick`).
"""

from __future__ import annotations

import os
import sys

VARIABLES = (
    *("ATEN_", "CUBLAS", "CUDA", "CUDNN", "DNNL", "GOMP", "KMP_", "MKL", "NVIDIA_", "OMP_"),
    *("ONEDNN", "OPENBLAS", "PYTORCH_", "TORCH", "TRITON_"),
)
"""How variables begin that a library of numbers may read."""
_HUB = ("HF_HOME", "HF_HUB_CACHE")
_SET_BY_KLEIN = ("OMP_WAIT_POLICY", "CUDA_MODULE_LOADING")
"""By klein itself as it starts; they change no bit."""
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def machine_lines() -> dict[str, list[str]]:
    """Of this process: klein's files, Python, the packages, the processors and the variables."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return {
        "klein": signatures(_PACKAGE),
        "python": [sys.prefix, sys.version.replace("\n", " ")],
        "packages": _packages(),
        "processors": [str(processors)],
        "environment": _variables(),
    }


def signatures(root: str) -> list[str]:
    """Each file below a folder by its name, size and time, in order; caches left out."""
    lines = []
    for folder, inside, files in os.walk(root):
        inside[:] = sorted(name for name in inside if name != "__pycache__")
        for name in sorted(files):
            path = os.path.join(folder, name)
            found = os.stat(path)
            lines.append(f"{path[len(root) :]} {found.st_size} {found.st_mtime_ns}")
    return lines


def _packages() -> list[str]:
    """What is installed, in which version: the names of the folders that say so.

    Places inside of packages do not count, which these add when they are imported.
    """
    found: set[str] = set()
    for place in dict.fromkeys(sys.path):
        if f"-packages{os.sep}" in place:
            continue
        try:
            found |= {name for name in os.listdir(place or ".") if name.endswith(".dist-info")}
        except OSError:
            continue
    return sorted(found)


def _variables() -> list[str]:
    return sorted(
        f"{name}={value}"
        for name, value in os.environ.items()
        if (name.startswith(VARIABLES) or name in _HUB) and name not in _SET_BY_KLEIN
    )
