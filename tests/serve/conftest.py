"""A server with engines that draw at once, in a thread."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engines import Running, running


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="klein-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One for the tests of a module that leave it as it was."""
    folder = Path(tempfile.mkdtemp(prefix="klein-"))
    with running(folder) as found:
        yield found
    shutil.rmtree(folder)
