"""`python -m klein_cli.run.executors.worker_process N`: a worker, on the socket of descriptor N.

It answers one request after another, and ends with the socket.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue

from klein_cli.run.executors import wire
from klein_cli.run.executors.worker import CancelRequest, DrawRequest, LoadRequest, Worker

_PR_SET_PDEATHSIG = 1


def main(descriptor: int) -> None:
    """Work until the driver has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_the_driver()
    connection = socket.socket(fileno=descriptor)
    # A compiler that a kernel starts must not hold the socket open.
    connection.set_inheritable(False)
    requests: SimpleQueue[LoadRequest | DrawRequest] = SimpleQueue()
    worker = Worker()
    threading.Thread(target=_read, args=(connection, requests, worker), daemon=True).start()

    def tell(message: wire.Message) -> None:
        with suppress(OSError):  # the driver has gone, and `_read` ends the process
            wire.send(connection, message)

    while True:
        request = requests.get()
        if isinstance(request, LoadRequest):
            tell(worker.load(request))
        else:
            tell(worker.draw(request, tell))


def _read(
    connection: socket.socket, requests: SimpleQueue[LoadRequest | DrawRequest], worker: Worker
) -> None:
    """Requests as they come, so that the driver never waits; in a thread, to notice its end."""
    while (request := wire.receive(connection)) is not None:
        if isinstance(request, CancelRequest):
            worker.cancel(request.number)
            continue
        assert isinstance(request, LoadRequest | DrawRequest)
        if isinstance(request, DrawRequest):
            worker.expect(request)
        requests.put(request)
    os._exit(0)


def _die_with_the_driver() -> None:
    """At once, where Linux can: the thread that would notice may wait for a long computation."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
