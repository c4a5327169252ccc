"""`klein stop`: the end of the engine of this user, or of one image in it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from klein_cli.errors import KleinError
from klein_cli.run.resident.connection import Place, asked
from klein_cli.run.resident.place import socket_path

_PATIENCE = 60.0

Socket = Annotated[
    Path | None,
    typer.Option("--socket", metavar="PATH", help="The engine's socket, if it has its own."),
]


def place_of(socket: Path | None) -> Place:
    """Where the engine of this user is."""
    return Place(path=socket_path() if socket is None else socket.absolute())


def stop(
    *,
    socket: Socket = None,
    job: Annotated[
        str | None,
        typer.Option("--job", metavar="ID", help="Break off this one alone: klein ps has its id."),
    ] = None,
    unload: Annotated[
        bool,
        typer.Option(
            "--unload", metavar=" ", help="Give the GPU back; the next image loads the model again."
        ),
    ] = False,
) -> None:
    """End the engine that is running, when the image in hand is finished."""
    place = place_of(socket)
    if job is not None:
        asked(place, "DELETE", f"/v1/jobs/{job}", seconds=5)
    elif unload:
        asked(place, "POST", "/klein/v1/unload", seconds=30)
    else:
        _wait_for_the_end(place, asked(place, "POST", "/klein/v1/stop", seconds=5)["pid"])


def _wait_for_the_end(place: Place, process: int) -> None:
    """Without asking the socket, which systemd may hold, to start another engine for who asks."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        if place.path is not None and not place.path.exists():
            return
        time.sleep(0.02)
    raise KleinError(f"the engine at {place} has not ended", "klein ps says what it does")
