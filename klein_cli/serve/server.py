"""The server as a process: its sockets, its connections and its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from klein_cli.serve.dispatcher import Dispatcher
from klein_cli.serve.guard import OWNER, App

SILENCE = 15.0
"""Seconds in which a connection has to say what it wants."""
MOST_CONNECTIONS = 512
PATIENCE = 30.0
"""Seconds for the images in hand, once the server is told to end."""
_LAST_ANSWERS = 5


class BoundedProtocol(H11Protocol):
    """One connection: closed if it says nothing, or there are too many; the owner's is marked."""

    silence = SILENCE
    most = MOST_CONNECTIONS
    _silent: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        family = transport.get_extra_info("socket").family
        is_owner = family == getattr(socket, "AF_UNIX", None)
        self.app_state = {**self.app_state, OWNER: is_owner}
        if len(self.connections) > self.most and not is_owner:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Begin to count while no request is whole, and stop while one is answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._silent is None:
            self._silent = self.loop.call_later(self.silence, self._hang_up)

    def _stop_watching(self) -> None:
        if self._silent is not None:
            self._silent.cancel()
        self._silent = None

    def _hang_up(self) -> None:
        self._silent = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's, whose end begins with `stop`, be it by a signal: once more, and it is at once."""

    def __init__(self, app: App, dispatcher: Dispatcher) -> None:
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="error",
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_LAST_ANSWERS,
            h11_max_incomplete_event_size=32_768,
        )
        super().__init__(config)
        self._dispatcher = dispatcher
        self._stopping: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM, SIGHUP and Ctrl-C are ours while the server runs, and nobody's afterwards."""
        loop = asyncio.get_running_loop()
        caught = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread
            for number in caught:
                loop.add_signal_handler(number, self.stop)
        yield
        with contextlib.suppress(ValueError, RuntimeError):
            for number in caught:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Refuse what is new (/readyz says so at once), finish what is in hand, and end."""
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop())
        else:
            self.force_exit = self.should_exit = True

    async def _stop(self) -> None:
        stopping = asyncio.ensure_future(self._dispatcher.stop(PATIENCE))
        while not stopping.done() and not self.force_exit:
            await asyncio.wait({stopping}, timeout=0.1)
        self.should_exit = True


async def serve(
    make: Callable[[Callable[[], None]], App],
    dispatcher: Dispatcher,
    sockets: Sequence[socket.socket],
    *,
    load: bool,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Answer on these sockets until the end; they do while the model loads, too.

    `make` gives the application, for what ends the server. With `load`, raises the error of a model
    that cannot be.
    """
    server: Server
    app = make(lambda: server.stop())
    server = Server(app, dispatcher)
    answering = asyncio.create_task(server.serve(sockets=list(sockets)))
    try:
        await dispatcher.start(load=load)
        if not dispatcher.stopping:
            on_ready()
        await answering
    finally:
        server.should_exit = True
        await dispatcher.stop(0)
        await answering


def tcp_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)
