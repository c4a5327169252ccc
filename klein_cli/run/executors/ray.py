"""Several processes that draw, on this machine or on many, through Ray: a model each.

Pictures come back to the driver as pixels, and the driver alone encodes, writes and keeps the
books: so there is one manifest, no file system that all machines must share, and the same code
and libraries make every file. A picture of 1024x1024 is 3 MB, which no network that Ray runs on
minds. A worker holds one attempt in hand and one in line, no more.

Bits: workers choose their settings as a single process would, use the driver's number of CPU
threads, and are told apart in the records of their pictures where their machines differ.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from klein_cli.errors import KleinError, UsageError
from klein_cli.run.executors.executor import Describe, Outcome, WorkerDied, describe_with
from klein_cli.run.executors.worker import Hello, Order, Worker
from klein_cli.run.fallback import Attempt
from klein_cli.run.interrupts import held_back
from klein_cli.settings import Settings

_IN_LINE = 2
"""Attempts a worker has at once: one in hand, and the next, so that it never waits for us."""

_RESTARTS = 2
"""How often one worker is started again before it is given up."""

_PATIENCE = 20.0
"""Seconds for a cluster's machine to answer at all."""

_FOLDER = "klein-ray-"
_SHORT = 7
"""Of the 103 bytes that a socket's path may have on some systems, Ray's part and ours take 96."""

_STORE_BYTES = 1 << 30
"""Memory for pictures on their way to the driver; Ray goes to the disk beyond it."""


@dataclass(slots=True)
class _Hand:
    """A worker as the driver sees it: its actor, and what it was given, the first in hand.

    `loading` is its unanswered call to load, `describe` is set when it is ready.
    """

    actor: Any
    loading: Any
    line: deque[tuple[Any, Attempt]] = field(default_factory=deque)
    describe: Describe | None = None
    restarts: int = 0

    @property
    def next_answer(self) -> Any:
        return self.loading if self.loading is not None else self.line[0][0] if self.line else None


class Pool:
    """See `executor.Crew`. `hello` is from the worker that was ready first."""

    hello: Hello

    def __init__(self, ray: Any, start: Callable[[], tuple[Any, Any]], count: int) -> None:
        self._ray = ray
        self._start = start
        self._hands = [_Hand(*start()) for _ in range(count)]
        self._returned: deque[Outcome] = deque()
        self._notices: deque[str] = deque()
        self._first: Hello | None = None
        self._alike = True
        self._last_words = ""

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self._hands)

    def wait_for_the_first(self) -> None:
        """Wait until there is a worker. Raises the error of the last when none can load."""
        while self._first is None:
            self._settle(self._answered())
        self.hello = self._first

    def has_room(self) -> bool:
        return any(self._free())

    def busy(self) -> bool:
        return bool(self._returned) or any(hand.line for hand in self._hands)

    def give(self, attempt: Attempt) -> None:
        hand = min(self._free(), key=lambda hand: len(hand.line))
        hand.line.append((hand.actor.draw.remote(attempt), attempt))

    def take(self) -> Outcome | None:
        if not self._returned:
            self._settle(self._answered())
        return self._returned.popleft() if self._returned else None

    def notices(self) -> Iterator[str]:
        while self._notices:
            yield self._notices.popleft()

    def close(self) -> None:
        """End the workers' processes."""
        for hand in self._hands:
            self._ray.kill(hand.actor)

    def _free(self) -> Iterator[_Hand]:
        return (hand for hand in self._hands if hand.describe and len(hand.line) < _IN_LINE)

    def _answered(self) -> _Hand:
        """Wait for the next worker to answer, or to die."""
        waiting = {hand.next_answer: hand for hand in self._hands if hand.next_answer is not None}
        if not waiting:
            raise KleinError(
                f"all workers died, the last one so: {self._last_words}",
                "see that there is memory enough, and klein on every machine",
            )
        ready, _ = self._ray.wait(list(waiting), num_returns=1)
        return waiting[ready[0]]

    def _settle(self, hand: _Hand) -> None:
        try:
            answer = self._ray.get(hand.next_answer)
        except self._ray.exceptions.RayError as error:
            self._last_words = _first_line(error)
            self._lost(hand)
            return
        if hand.loading is not None:
            hand.loading = None
            self._greet(hand, answer)
            return
        _, attempt = hand.line.popleft()
        assert hand.describe is not None
        self._returned.append(
            Outcome(
                attempt=attempt,
                # Copies, so that the shared memory they came in is free again.
                pictures=[picture.copy() for picture in answer.pictures],
                error=answer.error,
                seconds=answer.seconds,
                describe=hand.describe,
            )
        )

    def _greet(self, hand: _Hand, answer: Hello | Exception) -> None:
        if isinstance(answer, Exception):
            self._hands.remove(hand)
            self._ray.kill(hand.actor)
            if not self._hands and self._first is None:
                raise answer
            self._last_words = _first_line(answer)
            self._notices.append(f"a worker could not load the model: {answer}")
            return
        hand.describe = describe_with(answer.origin)
        if self._first is None:
            self._first = answer
        elif answer != self._first and self._alike:
            self._alike = False
            self._notices.append(
                "the workers' machines differ, so that a picture may depend on its worker by a "
                "bit: each says where it was made"
            )

    def _lost(self, hand: _Hand) -> None:
        """Give back what a dead worker had, and start another in its place."""
        for place, (_, attempt) in enumerate(hand.line):
            error = WorkerDied(drawing=place == 0)
            assert hand.describe is not None
            self._returned.append(
                Outcome(
                    attempt=attempt, pictures=[], error=error, seconds=0.0, describe=hand.describe
                )
            )
        self._ray.kill(hand.actor)
        self._hands.remove(hand)
        said = "a worker died; what it had is drawn by others"
        if hand.restarts < _RESTARTS:
            self._hands.append(_Hand(*self._start(), restarts=hand.restarts + 1))
            said += ", and another is started"
        self._notices.append(said)


@contextmanager
def hire(order: Order, count: int | None, *, most: int, address: str | None) -> Iterator[Pool]:
    """Workers with the model loaded, at least one of them; they end with the context.

    `count` None is one for each GPU, or for each machine where there is none, but no more than
    `most`. `address` is a Ray that runs already; without it, one is started here, and ended.
    Raises UsageError without Ray or without that many GPUs, ModelError when no worker can load
    the model.
    """
    check_ray(f"--workers {count}")
    options: dict[str, Any] = {"address": address}
    if address is None:
        gpus = _gpus_here(order.settings)
        _check_gpus(count, gpus)
        options = {"num_cpus": count, "num_gpus": gpus}
    with _connected(options) as ray:
        gpus = 0 if order.settings.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        _check_gpus(count, gpus)
        if count is None:
            count = gpus or sum(node["Alive"] for node in ray.nodes())
        actor = ray.remote(Worker).options(num_cpus=1, num_gpus=1 if gpus else 0)

        def start() -> tuple[Any, Any]:
            worker = actor.remote()
            return worker, worker.load.remote(order)

        pool = Pool(ray, start, min(count, most))
        try:
            pool.wait_for_the_first()
            yield pool
        finally:
            pool.close()


def check_ray(option: str) -> None:
    """Raise UsageError unless Ray, which `option` needs, is installed."""
    if find_spec("ray") is None:
        raise UsageError(
            f"{option} needs Ray, which is not installed", "pip install 'klein-cli[ray]'"
        )


def _gpus_here(settings: Settings) -> int:
    import torch

    return 0 if settings.device == "cpu" else torch.cuda.device_count()


def _check_gpus(count: int | None, gpus: int) -> None:
    if count is not None and count > gpus > 0:
        raise UsageError(
            f"--workers {count} want a GPU each, and there {'is' if gpus == 1 else 'are'} {gpus}",
            f"use --workers {gpus}, or auto",
        )


@contextmanager
def _connected(options: dict[str, Any]) -> Iterator[Any]:
    """Ray, without a word of its own on our streams, and nothing left of it afterwards.

    `options` are for `ray.init`; without an address a Ray is started for this run.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without it, Ray warns on stderr that workers without a GPU will see all of them one day.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with held_back():
        import ray

    # Ray prints what befalls its processes to stdout, which belongs to our results.
    sys.modules["ray._private.worker"]._worker_logs_enabled = False  # type: ignore[attr-defined]
    with ExitStack() as stack:
        if "address" not in options:
            options |= {"address": "local", "include_dashboard": False}
            options |= {"_temp_dir": stack.enter_context(_own_folder())}
            options |= {"object_store_memory": _STORE_BYTES}
        stack.callback(ray.shutdown)
        try:
            _knock(options["address"])
            with held_back():  # Ray's own threads do not bear one while they start
                ray.init(logging_level="CRITICAL", log_to_driver=False, **options)
        except Exception as error:
            raise KleinError(
                f"Ray does not start: {_first_line(error)}",
                "see that the address is right, and klein and Ray the same on all machines",
            ) from None
        yield ray


def _knock(address: str) -> None:
    """Raise OSError when nobody answers at HOST:PORT: Ray would try again for many minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


@contextmanager
def _own_folder() -> Iterator[str]:
    """Where Ray's own files go while it runs; those of runs that were killed are taken away.

    Ray puts sockets there, whose paths must be short.
    """
    place = tempfile.gettempdir()
    if len(place) > _SHORT and sys.platform != "win32":
        place = "/tmp"
    # Others may share the place: containers, or machines with one disk.
    ours = f"{_FOLDER}{_whereabouts()}-"
    for left in Path(place).glob(f"{ours}*-*"):
        owner = left.name.removeprefix(ours).partition("-")[0]
        if owner.isdecimal() and not _is_running(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"{ours}{os.getpid()}-", dir=place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _whereabouts() -> str:
    """A short name of the machine, or container, whose process numbers are the ones seen here."""
    numbers = Path("/proc/self/ns/pid")
    said = f"{socket.gethostname()} {numbers.stat().st_ino if numbers.exists() else 0}"
    return hashlib.sha256(said.encode()).hexdigest()[:4]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
