"""Workers as actors of a Ray cluster that runs already, on this machine or on many."""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from klein_cli.errors import KleinError, UsageError, first_line
from klein_cli.run.executors.executor import ReadyExecutor, Workload
from klein_cli.run.executors.placement import Placement
from klein_cli.run.executors.pool import WorkerLost, started
from klein_cli.run.executors.worker import (
    Drawn,
    DrawRequest,
    Failure,
    LoadRequest,
    Worker,
    WorkerInfo,
)
from klein_cli.run.interrupts import defer_interrupts

_PATIENCE = 20.0
"""Seconds for a cluster's machine to answer at all."""


class Actor:
    """See `pool.Link`: an actor, and its calls that are not answered yet."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.actor = actor
        self.calls: deque[Any] = deque()
        self._ray = ray

    def send(self, request: LoadRequest | DrawRequest) -> None:
        method = self.actor.load if isinstance(request, LoadRequest) else self.actor.draw
        self.calls.append(method.remote(request))

    def answer(self) -> WorkerInfo | Drawn | Failure:
        try:
            answer: WorkerInfo | Drawn | Failure = self._ray.get(self.calls.popleft())
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(first_line(error)) from None
        if isinstance(answer, Drawn):
            # Copies, so that the shared memory they came in is free again.
            return replace(answer, images=[image.copy() for image in answer.images])
        return answer


class Actors:
    """See `pool.Transport`."""

    def __init__(self, ray: Any, *, gpus: int) -> None:
        self._ray = ray
        self._class = ray.remote(Worker).options(num_cpus=1, num_gpus=1 if gpus else 0)

    def start(self) -> Actor:
        return Actor(self._ray, self._class.remote())

    def wait(self, links: Sequence[Actor]) -> Actor:
        calls = {link.calls[0]: link for link in links}
        ready, _ = self._ray.wait(list(calls), num_returns=1)
        return calls[ready[0]]

    def end(self, links: Sequence[Actor]) -> None:
        for link in links:
            self._ray.kill(link.actor)


def fits(placement: Placement) -> bool:
    """Whether a Ray is to draw."""
    return placement.ray is not None


def check(placement: Placement) -> None:
    """Raise UsageError unless Ray is installed."""
    if find_spec("ray") is None:
        raise UsageError(
            f"--ray {placement.ray} needs Ray, which is not installed",
            "pip install 'klein-cli[ray]'",
        )


@contextmanager
def start(work: Workload) -> Iterator[ReadyExecutor]:
    """Workers on the cluster: one for each GPU, or for each machine where there is none.

    Raises UsageError when there are fewer GPUs than workers, KleinError when the cluster
    does not answer, ModelError when no worker can load the model.
    """
    with _connected(work.placement.ray) as ray:
        gpus = int(ray.cluster_resources().get("GPU", 0)) if work.settings.device != "cpu" else 0
        work.placement.check_gpus(gpus)
        count = work.placement.workers
        if count is None:
            count = gpus or sum(node["Alive"] for node in ray.nodes())
        actors, count = Actors(ray, gpus=gpus), min(count, work.images)
        with started(work, actors, count, by_path=False) as ready:
            yield ready


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """The Ray at an address, without a word of its own on our streams."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without it, Ray warns on stderr that workers without a GPU will see all of them one day.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with defer_interrupts():
        import ray
    # Ray prints what befalls its processes to stdout, which belongs to our results.
    sys.modules["ray._private.worker"]._worker_logs_enabled = False  # type: ignore[attr-defined]
    try:
        try:
            _check_reachable(address or "")
            with defer_interrupts():  # Ray's own threads do not survive one while they start
                ray.init(address=address, logging_level="CRITICAL", log_to_driver=False)
        except Exception as error:
            raise KleinError(
                f"Ray does not start: {first_line(error)}",
                "check the address and RAY_AUTH_TOKEN, and that klein and Ray are the same "
                "versions on all machines",
            ) from None
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise OSError when nobody answers at HOST:PORT: Ray would try again for many minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
