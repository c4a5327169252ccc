"""Workers as processes on this machine: one for each GPU, or several that share the CPU.

They speak `wire` over a socket pair. A worker ends when its socket does, so that none is left when
the driver is killed; Ctrl-C is the driver's alone.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from socket import SHUT_RDWR, socketpair
from typing import IO

from klein_cli.device.startup import child_environment
from klein_cli.errors import KleinError, UsageError
from klein_cli.run.executors import wire
from klein_cli.run.executors.executor import ReadyExecutor, Workload
from klein_cli.run.executors.placement import Placement
from klein_cli.run.executors.pool import WorkerLost, started
from klein_cli.run.executors.worker import (
    CancelRequest,
    Drawn,
    DrawRequest,
    Failure,
    LoadRequest,
    Stepped,
    WorkerInfo,
)

_PROGRAM = "klein_cli.run.executors.worker_process"
_GPUS = "CUDA_VISIBLE_DEVICES"
_PATIENCE = 5.0
"""Seconds for a process to end whose socket has."""


class WorkerProcess:
    """See `pool.Link`: a process that sees `gpu` alone, or what this one sees if that is None."""

    def __init__(self, gpu: str | None) -> None:
        self.gpu = gpu
        self.connection, theirs = socketpair()
        with theirs:
            # Nothing a library prints reaches our streams; its last line may tell of its end.
            self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `end`)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=[theirs.fileno()],
                env=_environment(gpu),
                start_new_session=True,
            )

    def send(self, request: LoadRequest | DrawRequest | CancelRequest) -> None:
        with suppress(OSError):  # it has died: the lack of an answer will tell
            wire.send(self.connection, request)

    def answer(self) -> WorkerInfo | Drawn | Failure:
        message = self.message()
        assert not isinstance(message, Stepped)
        return message

    def message(self) -> WorkerInfo | Stepped | Drawn | Failure:
        """An answer, or what comes before that of a batch which is watched. Raises WorkerLost."""
        message = wire.receive(self.connection)
        if message is None:
            raise WorkerLost(self._last_output())
        assert isinstance(message, WorkerInfo | Stepped | Drawn | Failure)
        return message

    def hang_up(self) -> None:
        """Let the process end, and a thread that waits for its messages."""
        with suppress(OSError):
            self.connection.shutdown(SHUT_RDWR)
        self._process.kill()

    def kill(self) -> None:
        """Let the process end, without waiting."""
        self.connection.close()
        self._process.kill()

    def wait(self) -> None:
        """Wait for the end of the process."""
        self._process.wait()
        self._output.close()

    def _last_output(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        code = self._process.returncode
        if code is not None and code < 0:
            return f"it was killed by signal {-code}"
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with code {code}"


class Processes:
    """See `pool.Transport`. Each process has one of `gpus` while it lives."""

    def __init__(self, gpus: Sequence[str | None]) -> None:
        self._free = deque(gpus)

    def start(self) -> WorkerProcess:
        try:
            link = WorkerProcess(self._free[0])
        except OSError as error:
            raise KleinError(
                f"cannot start a worker: {error.strerror or error}", "use fewer --workers"
            ) from None
        self._free.popleft()
        return link

    def wait(self, links: Sequence[WorkerProcess]) -> WorkerProcess:
        with selectors.DefaultSelector() as selector:
            for link in links:
                selector.register(link.connection, selectors.EVENT_READ, link)
            key, _ = selector.select()[0]
            return key.data  # type: ignore[no-any-return]

    def end(self, links: Sequence[WorkerProcess]) -> None:
        for link in links:
            link.kill()
        for link in links:
            link.wait()
            self._free.append(link.gpu)


def fits(placement: Placement) -> bool:
    """Whether several processes of this machine are to draw."""
    return placement.ray is None and not placement.single


def check(placement: Placement) -> None:
    """Raise UsageError where a child cannot inherit a socket."""
    if sys.platform == "win32":
        raise UsageError("--workers is not available on Windows", "leave it out")


@contextmanager
def start(work: Workload) -> Iterator[ReadyExecutor]:
    """Workers on this machine. Raises UsageError when there are fewer GPUs, else KleinError."""
    work.placement.check_gpus(work.gpus)
    count = work.placement.workers
    assert count is not None
    gpus: Sequence[str | None] = visible_gpus(count) if work.gpus else [None] * count
    with started(work, Processes(gpus), count, by_path=True) as ready:
        yield ready


def visible_gpus(count: int) -> list[str]:
    """The first `count` GPUs that this process may see, as CUDA names them."""
    named = os.environ.get(_GPUS)
    return list(map(str, range(count))) if named is None else named.split(",")[:count]


def _environment(gpu: str | None) -> dict[str, str]:
    """A worker's: with its GPU."""
    environment = child_environment()
    return environment if gpu is None else {**environment, _GPUS: gpu}
