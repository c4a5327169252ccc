"""`klein ps`: what the engine of this user is doing."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from klein_cli.cli.commands.stop import Socket, place_of
from klein_cli.run.resident.connection import asked


def ps(
    *,
    socket: Socket = None,
    as_json: Annotated[
        bool, typer.Option("--json", metavar=" ", help="As JSON, for programs.")
    ] = False,
) -> None:
    """Show the engine that is running: what it draws, and what waits."""
    found = asked(place_of(socket), "GET", "/klein/v1/status", seconds=5)
    lines = [json.dumps(found)] if as_json else _lines(found)
    for line in lines:
        typer.echo(line)


def _lines(found: dict[str, Any]) -> list[str]:
    loaded = f"{found['loaded']} of {found['engines']} loaded"
    lines = [f"{found['model']}  process {found['pid']}  up {found['up']:.0f} s  engines {loaded}"]
    for job in found["jobs"]:
        place = f"number {job['place']}" if job["place"] else "drawing"
        lines.append(
            f"{job['id']}  {place}  {job['class']}  {job['images']} x {job['size']}  "
            f"{job['seconds']:.1f} s"
        )
    return lines
