"""`klein serve` as it is typed: an engine that stays, for klein itself, other programs and people.

The server's own packages are imported when it runs: they are the extra `serve`.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from klein_cli.checkpoints.resolve import on_disk, resolve
from klein_cli.cli import options
from klein_cli.cli.groups import grouped
from klein_cli.cli.terminal.follow import run_command
from klein_cli.cli.terminal.report import Report
from klein_cli.errors import UsageError
from klein_cli.presets import DEFAULT_MODEL
from klein_cli.run.resident.place import socket_path

_PANEL = "Where it listens"
_PORT = 7866
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def _option(*names: str, metavar: str, help: str) -> object:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=_PANEL)


@grouped(leave_out={"workers", "ray", "server", "batch_size", "quiet", "verbose", "json"})
def serve(
    *,
    model: options.Model = DEFAULT_MODEL,
    socket: Annotated[
        Path | None,
        _option("--socket", metavar="PATH", help="The Unix socket, in a folder of yours alone."),
    ] = None,
    host: Annotated[
        str | None,
        _option(
            "--host",
            metavar="ADDRESS",
            help="Listen on TCP, too: 127.0.0.1 for this machine; any other address needs keys.",
        ),
    ] = None,
    port: Annotated[
        int | None, _option("--port", metavar="N", help=f"The port on TCP: {_PORT} if left out.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        _option("--api-key-file", metavar="FILE", help="Keys for TCP, one a line: any will do."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        _option(
            "--cors-origin",
            metavar="ORIGIN",
            help="A web page's origin that may use the server from a browser, as in "
            "https://example.org. Repeatable.",
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        _option(
            "--served-model-name",
            metavar="NAME",
            help="Another name by which requests may call the model. Repeatable.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        _option(
            "--lora",
            metavar="NAME=FILE",
            help="An adapter that requests may name in their lora. Repeatable.",
        ),
    ] = None,
    keep_alive: Annotated[
        str,
        _option(
            "--keep-alive",
            metavar="TIME",
            help="How long the model stays on the GPU without work: 0, 30s, 5m, 2h or forever.",
        ),
    ] = "forever",
    queue: Annotated[
        int,
        _option("--queue", metavar="N", help="How many images may wait; more are refused."),
    ] = 64,
    log: Annotated[
        str, _option("--log", metavar="text|json|none", help="How requests are logged.")
    ] = "text",
    gpus: Annotated[
        str,
        _option("--gpus", metavar="N|auto", help="Engines, each on a GPU of its own."),
    ] = "auto",
    machine: options.MachineOptions,
    reporting: options.ReportOptions,
) -> None:
    """Keep a model ready for klein, other programs and a browser.

    It listens on a Unix socket that is yours alone, where `klein generate` finds
    it; --host and --port add TCP, with OpenAI's Images API. Ctrl-C or klein stop
    ends it when the image in hand is finished.
    """

    def run(report: Report) -> int:
        if log not in ("text", "json", "none"):
            raise UsageError(f"--log {log} is not valid", "use text, json or none")
        try:
            from klein_cli.serve.log import Log
            from klein_cli.serve.start import Server, read_adapters, read_keys
            from klein_cli.serve.start import run as run_server
        except ModuleNotFoundError as error:
            raise UsageError(
                f"klein serve needs {error.name}", "pip install 'klein-cli[serve]'"
            ) from None
        settings = machine.settings()
        snapshot = on_disk(model)
        if snapshot is None:
            with report.bar, report.downloading() as watch:
                snapshot = resolve(model, watch)
        adapters, lines = read_adapters(lora or (), snapshot)
        for line in lines:
            report.note(line)
        asked = Server(
            model=model,
            snapshot=snapshot,
            settings=settings,
            path=socket_path() if socket is None else socket.absolute(),
            host=host or "127.0.0.1",
            port=_PORT if port is None and host is not None else port,
            keys=() if api_key_file is None else read_keys(api_key_file),
            origins=tuple(cors_origin or ()),
            names=tuple(served_model_name or ()),
            adapters=adapters,
            keep_alive=seconds(keep_alive),
            queue=queue,
            engines=_engines(gpus),
        )
        run_server(asked, report, Log(as_json=log == "json", quiet=log == "none"))
        return 0

    raise typer.Exit(run_command(run, output=None, dry_run=False, **asdict(reporting)))


def seconds(text: str) -> float | None:
    """ "5m" -> 300.0; None for "forever". Raises UsageError."""
    if text == "forever":
        return None
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text, re.ASCII)
    if not found:
        raise UsageError(f"--keep-alive {text} is not valid", "use 0, 30s, 5m, 2h or forever")
    return float(int(found[1]) * _UNITS[found[2]])


def _engines(text: str) -> int | None:
    if text == "auto":
        return None
    if not re.fullmatch(r"0*[1-9]\d{0,3}", text, re.ASCII):
        raise UsageError(f"--gpus {text} is not valid", "use a number from 1 to 9999, or auto")
    return int(text)
