"""What runs in a worker's process: a model, and the drawing of one attempt after another."""

from __future__ import annotations

import os
import pickle
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from klein_cli.errors import KleinError
from klein_cli.run.executors.executor import Origin, draw
from klein_cli.run.fallback import Attempt
from klein_cli.settings import Settings

if TYPE_CHECKING:
    from klein_cli.pipeline import Pipeline
    from klein_cli.run.fallback import Pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What workers are to load: a model by name or absolute path, and how they are to compute."""

    model: str
    settings: Settings
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A worker that is ready, and how it computes."""

    origin: Origin
    batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A worker's answer to an attempt: pictures or the error in their place, and the seconds."""

    pictures: list[Pixels]
    error: Exception | None
    seconds: float


class Worker:
    """What lives in a worker's process. Errors are answers: Ray would wrap them in its own."""

    def __init__(self) -> None:
        self._pipeline: Pipeline | None = None

    def load(self, order: Order) -> Hello | Exception:
        """Get the model ready."""
        try:
            # Ray gives its processes one thread, and idle ones would spin: see cli/startup.py.
            os.environ["OMP_NUM_THREADS"] = str(order.threads)
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            import torch

            from klein_cli.checkpoints.resolve import resolve
            from klein_cli.pipeline import Pipeline, choose

            torch.set_num_threads(order.threads)
            snapshot = resolve(order.model)
            pipeline = Pipeline.load(snapshot, choose(order.settings, snapshot.preset))
            origin = Origin.of(pipeline)
        except Exception as error:
            return _portable(error)
        self._pipeline = pipeline
        return Hello(origin=origin, batch_size=pipeline.default_batch_size)

    def draw(self, attempt: Attempt) -> Drawn:
        """The pictures of an attempt."""
        assert self._pipeline is not None
        started = time.perf_counter()
        pictures, error = draw(self._pipeline, attempt)
        seconds = time.perf_counter() - started
        return Drawn(
            pictures=pictures, error=None if error is None else _portable(error), seconds=seconds
        )


def _portable(error: Exception) -> Exception:
    """The error as it can leave the process; a bug takes the words of its traceback along."""
    if isinstance(error, KleinError):
        return error
    error.add_note("in a worker:\n" + "".join(traceback.format_exception(error)).rstrip())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.__notes__ = error.__notes__
        return plain
    return error
