"""A random-weight snapshot for tests that run the whole command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def random_snapshot(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small model that draws coloured noise, 16 to 4096 pixels a side."""
    folder = tmp_path_factory.mktemp("models") / "random"
    script = REPOSITORY / "scripts" / "make_snapshot.py"
    subprocess.run([sys.executable, script, folder, "--size", "small"], check=True, cwd=REPOSITORY)
    return str(folder)
