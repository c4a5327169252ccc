"""What makes a command start and end sooner. None of it changes a number."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_start() -> Iterator[None]:
    """For the imports of torch and diffusers, and the loading of a model.

    OpenMP is told, before it starts, that its idle threads sleep: by default they spin, and a
    picture takes several times as long on a CPU that is shared with anything else. And the garbage
    collector rests: the imports make 400,000 objects that stay, and looking through them takes a
    fifth of the time of the imports, and a second more when Python ends.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    atexit.register(gc.freeze)
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
