"""What `klein serve` does: a model, its engines and its sockets, until it is told to end."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from klein_cli.checkpoints.lora.adapter import AdapterFile
from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.device.startup import count_gpus
from klein_cli.errors import UsageError
from klein_cli.presets import presets
from klein_cli.run.events import Listener
from klein_cli.run.executors.process import visible_gpus
from klein_cli.run.executors.worker import LoadRequest
from klein_cli.run.resident.facts import machine_facts, model_facts
from klein_cli.run.resident.place import listening
from klein_cli.serve.app import application
from klein_cli.serve.dispatcher import Dispatcher
from klein_cli.serve.engine import ChildEngine, Engine
from klein_cli.serve.fields import Served
from klein_cli.serve.guard import App, Rules
from klein_cli.serve.lengths import PromptLengths
from klein_cli.serve.line import Line
from klein_cli.serve.log import Log
from klein_cli.serve.metrics import Metrics
from klein_cli.serve.server import serve, tcp_socket
from klein_cli.serve.service import Service
from klein_cli.serve.systemd import handed_over, notify
from klein_cli.settings import Settings
from klein_cli.text.tokenizer import PromptTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What the user asked for. No `port` means no TCP; no `engines`, one for each GPU."""

    model: str
    snapshot: Snapshot
    settings: Settings
    path: Path
    host: str
    port: int | None
    keys: tuple[str, ...]
    origins: tuple[str, ...]
    names: tuple[str, ...]
    adapters: dict[str, AdapterFile]
    keep_alive: float | None
    queue: int
    engines: int | None


def run(asked: Server, listener: Listener, log: Log) -> None:
    """Serve until a signal, or a client that may, ends it. Raises KleinError."""
    check_exposed(asked)
    facts = {**machine_facts(), **model_facts(asked.snapshot)}
    metrics = Metrics()
    with ExitStack() as stack:
        sockets = list(_sockets(asked, stack, listener))
        dispatcher = Dispatcher(
            _engines(asked),
            line=Line(asked.queue),
            metrics=metrics,
            log=log,
            keep_alive=asked.keep_alive,
        )
        names = dict.fromkeys((asked.snapshot.preset.name, *asked.names))
        service = Service(
            model=asked.model,
            served=Served(
                preset=asked.snapshot.preset,
                names=tuple(names),
                adapters={name: file.weighing(1.0) for name, file in asked.adapters.items()},
            ),
            settings=asked.settings,
            facts=facts,
            lengths=PromptLengths(lambda: PromptTokenizer.of(asked.snapshot)),
            dispatcher=dispatcher,
            metrics=metrics,
            log=log,
        )
        make = partial(_application, service, _rules(asked))
        ready = partial(_ready, asked, listener)
        asyncio.run(serve(make, dispatcher, sockets, load=True, on_ready=ready))
        notify("STOPPING=1")


def check_exposed(asked: Server) -> None:
    """Raise UsageError where the server would serve anybody."""
    if asked.port is not None and not asked.keys and not is_loopback(asked.host):
        raise UsageError(
            f"--host {asked.host} would serve everybody who can reach this machine",
            "give --api-key-file, or leave out --host",
        )


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_adapters(
    texts: Sequence[str], snapshot: Snapshot
) -> tuple[dict[str, AdapterFile], list[str]]:
    """NICK=FILE of each, and a line for each of how much it changes. Raises UsageError, and
    ModelError for one that does not fit the model.
    """
    store, found = AdapterStore(), {}
    for text in texts:
        name, is_named, path = text.partition("=")
        if not is_named or not name or not path:
            raise UsageError(f"--lora {text} is not valid", "write it as NAME=FILE")
        if name in found:
            raise UsageError(f"--lora names {name} twice", "give each a name of its own")
        found[name] = store.add(Path(path).expanduser())
    return found, store.check(snapshot)


def read_keys(path: Path) -> tuple[str, ...]:
    """A key a line; # begins a comment. Raises UsageError."""
    try:
        found = path.stat()
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", "check --api-key-file") from None
    if found.st_mode & 0o077:
        raise UsageError(f"{path} can be read by other users", f"chmod 600 {path}")
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys or min(map(len, keys)) < 16:
        raise UsageError(
            f"{path} needs a key of at least 16 characters a line",
            "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one",
        )
    return keys


def _application(service: Service, rules: Rules, stop: Callable[[], None]) -> App:
    return application(service, rules, stop=stop)


def _sockets(asked: Server, stack: ExitStack, listener: Listener) -> Iterator[socket.socket]:
    given = handed_over()
    for each in given:
        yield stack.enter_context(each)
    if not given:
        yield stack.enter_context(listening(asked.path))
    if asked.port is None:
        return
    try:
        yield stack.enter_context(tcp_socket(asked.host, asked.port))
    except OSError as error:
        raise UsageError(
            f"cannot listen at {asked.host} port {asked.port}: {error.strerror or error}",
            "give another --port",
        ) from None
    if not asked.keys:
        listener.warn(
            f"every user of this machine can use port {asked.port}: --api-key-file asks for a key"
        )


def _rules(asked: Server) -> Rules:
    if is_loopback(asked.host):
        return Rules(keys=asked.keys, origins=asked.origins)
    return Rules(hosts=None, keys=asked.keys, origins=asked.origins)


def _engines(asked: Server) -> Sequence[Callable[[], Engine]]:
    """How to make each engine: one for each GPU, or so many that share the CPU."""
    snapshot = asked.snapshot
    is_folder = snapshot.repo is None and asked.model not in presets()
    model = str(snapshot.root.resolve()) if is_folder else asked.model
    adapters = [str(file.path) for file in asked.adapters.values()]
    request = LoadRequest(model=model, settings=asked.settings, threads=None, adapters=adapters)
    count = _count(asked)
    gpus: Sequence[str | None] = visible_gpus(count) if count > 1 else [None]
    return [partial(ChildEngine, request, gpu) for gpu in gpus]


def _count(asked: Server) -> int:
    gpus = count_gpus() if asked.settings.device in ("auto", "cuda") else 0
    if asked.engines is None:
        return max(1, gpus)
    if asked.engines > max(1, gpus):
        raise UsageError(
            f"--gpus {asked.engines} needs a GPU for each, and there "
            f"{'is' if gpus == 1 else 'are'} {gpus}",
            "leave it out: an engine is started for each GPU",
        )
    return asked.engines


def _ready(asked: Server, listener: Listener) -> None:
    notify("READY=1")
    places = [str(asked.path)]
    if asked.port is not None:
        host = f"[{asked.host}]" if ":" in asked.host else asked.host
        places.append(f"http://{host}:{asked.port}")
    listener.note(f"{asked.snapshot.name} is ready: {' and '.join(places)}")
