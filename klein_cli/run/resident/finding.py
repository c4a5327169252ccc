"""--server: which engine draws for a command, if any may; and why not, in words.

An engine will do when all that can change a bit is the same there. Otherwise the command draws by
itself: never a silently different image.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klein_cli.device.startup import child_environment
from klein_cli.errors import KleinError, UsageError
from klein_cli.output.metadata import Origin
from klein_cli.recipe import Model
from klein_cli.run.resident.connection import HELLO_SECONDS, EngineError, Place, asked
from klein_cli.run.resident.facts import difference, machine_facts, model_facts, settings_differ
from klein_cli.run.resident.place import VARIABLE, socket_path
from klein_cli.settings import CHOICES, Settings
from klein_cli.tables import built

if TYPE_CHECKING:
    from klein_cli.checkpoints.resolve import Snapshot

PROTOCOL = 1
MODES = ("auto", "off", "require", "start")
_KEY = "KLEIN_API_KEY"
_LOADING = 600.0
_KEEP_ALIVE = "5m"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerChoice:
    """--server, parsed: one of MODES, and where the engine is if that was said."""

    mode: str = "off"
    place: Place | None = None

    @classmethod
    def parse(cls, text: str) -> ServerChoice:
        """From the option as it was given. Raises UsageError."""
        if text in MODES:
            named = os.environ.get(VARIABLE, "")
            return cls(mode=text, place=_place(named) if "://" in named else None)
        if "/" not in text:
            raise UsageError(
                f"--server {text} is not valid", "use auto, off, require, start or a URL"
            )
        return cls(mode="require", place=_place(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """An engine that will do. Its images come from `origin`; `engines` draw at once."""

    place: Place
    origin: Origin
    batch_size: int
    engines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of looking: the engine, or `why` there is none for this command."""

    resident: Resident | None
    why: str = ""


def find(
    choice: ServerChoice, model: str, snapshot: Snapshot, settings: Settings, *, given: str = ""
) -> Found:
    """Look for an engine; `given` is what the command gives it that no engine takes from others.

    Raises KleinError where an engine is required and none will do.
    """
    place = choice.place or Place(path=socket_path())
    if given:
        found = Found(resident=None, why=f"it has not these {given}")
    else:
        found = look(place, snapshot, settings)
    if found.resident is None and choice.mode == "start" and found.why == _NOBODY:
        _start(place, model, settings)
        found = _awaited(place, snapshot, settings)
    elif choice.mode == "require" and found.why == _STILL_LOADING:
        found = _awaited(place, snapshot, settings)
    if found.resident is None and choice.mode == "require":
        raise KleinError(
            f"no engine at {place} can draw this: {found.why}",
            "start one that can with klein serve, or leave out --server",
        )
    return found


def look(place: Place, snapshot: Snapshot, settings: Settings) -> Found:
    """Ask the engine at a place what it is, once."""
    if place.path is not None and not place.path.exists():
        return Found(resident=None, why=_NOBODY)
    try:
        said = asked(place, "GET", "/klein/v1/hello", seconds=HELLO_SECONDS)
        return _compared(place, said, snapshot, settings)
    except EngineError as error:
        return Found(resident=None, why=_NOBODY if error.status == 0 else error.message)
    except (KeyError, TypeError, ValueError, KleinError):
        return Found(resident=None, why="what answers there is another klein")


_NOBODY = "none is running"
_STILL_LOADING = "it is still loading its model"


def _compared(place: Place, said: Any, snapshot: Snapshot, settings: Settings) -> Found:
    if said["protocol"] != PROTOCOL:
        return Found(resident=None, why="it is of another version of klein")
    differs = None
    if place.path is not None:
        ours = {**machine_facts(), **model_facts(snapshot)}
        differs = difference(ours, said["facts"])
    elif said["model"] != snapshot.name:
        differs = "model"
    if differs is not None:
        return Found(resident=None, why=f"its {differs} {_is(differs)} not the same")
    if said["origin"] is None:
        return Found(resident=None, why=_STILL_LOADING)
    origin = _origin(said["origin"])
    theirs = Settings(**{name: said["settings"][name] for name in CHOICES})
    if option := settings_differ(settings, theirs, origin.settings):
        return Found(resident=None, why=f"its {option} is not the same")
    batch_size, engines = int(said["batch_size"]), max(1, int(said["engines"]))
    return Found(
        resident=Resident(place=place, origin=origin, batch_size=batch_size, engines=engines)
    )


def _origin(said: Mapping[str, Any]) -> Origin:
    found: Origin = built(
        {**said, "model": {"parts": [], **said["model"]}},
        Origin,
    )
    assert isinstance(found.model, Model)
    return found


def _is(name: str) -> str:
    return "are" if name.endswith("s") else "is"


def _start(place: Place, model: str, settings: Settings) -> None:
    """An engine in the background, in a session of its own, that ends when it is idle."""
    if place.path is None:
        raise UsageError(f"no engine can be started at {place}", "leave out its URL")
    place.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = [f"--{name}={getattr(settings, name)}" for name in CHOICES]
    command = [sys.executable, "-P", "-m", "klein_cli", "serve", "-m", model, "--no-config"]
    command += ["--socket", str(place.path), "--keep-alive", _KEEP_ALIVE, *options]
    made = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    os.posix_spawn(
        sys.executable,
        command,
        child_environment(),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(_log(place.path)), made, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def _awaited(place: Place, snapshot: Snapshot, settings: Settings) -> Found:
    """The engine, once its model is loaded."""
    until = time.monotonic() + _LOADING
    appeared = False
    while True:
        found = look(place, snapshot, settings)
        appeared = appeared or found.why == _STILL_LOADING
        gone = appeared and found.why == _NOBODY
        if found.resident is not None or found.why not in (_NOBODY, _STILL_LOADING):
            return found
        if gone or time.monotonic() > until:
            assert place.path is not None
            raise KleinError("the engine could not be started", f"see {_log(place.path)}")
        time.sleep(0.05)


def _log(path: Path) -> Path:
    return path.with_suffix(".log")


def _place(text: str) -> Place:
    """Where a URL, or the path of a socket, leads. Raises UsageError."""
    scheme, found, rest = text.partition("://")
    if not found or scheme == "unix":
        return Place(path=Path(rest if found else text).absolute())
    from urllib.parse import urlsplit

    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port or 80
    except ValueError:
        host, port = None, 0
    if scheme != "http" or not host:
        raise UsageError(
            f"--server {text} is not valid", "use http://HOST:PORT, or the path of a socket"
        )
    return Place(host=host, port=port, key=os.environ.get(_KEY))
