"""`klein`: the commands, each imported when it is run or asked about.

What goes wrong leaves the process as two lines on stderr and an exit code; a bug keeps its
traceback.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from klein_cli import __version__
from klein_cli.cli.config import configured
from klein_cli.cli.terminal.stdio import exit_code
from klein_cli.cli.terminal.text import to_stderr
from klein_cli.cli.terminal.width import check_width
from klein_cli.cli.usage import COMPLAINTS, explain
from klein_cli.errors import KleinError, UsageError
from klein_cli.run.interrupts import exit_code_of

_STYLE: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


SUMMARIES = {
    "generate": "Draw images from words. Paths go to standard output, all else to standard error.",
    "edit": "Change an image by words, or each image of a folder.",
    "verify": "Prove that klein computes what the official model computes: exit code 0 if so, 1 "
    "if not.",
    "info": "Show the recipe that travels inside an image, or what a file of weights is.",
    "reproduce": "Draw an image again from the recipe inside it; any option makes a variation "
    "of it.",
    "bench": "Measure klein on this machine: warm, in a batch and from a cold start.",
    "gallery": "Make one page of a folder's images: filter, sort, and the recipe of each on a "
    "click.",
    "serve": "Keep a model ready for klein, other programs and a browser.",
    "ps": "Show the engine that is running: what it draws, and what waits.",
    "stop": "End the engine that is running, when the image in hand is finished.",
    "doctor": "Check GPU, driver, torch, kernels, disks and models: exit code 0 if all is well, "
    "1 if not.",
    "models": "List the models: licence, size, whether they are on this machine, memory.",
}
"""The commands and the first lines of their help, in the order of `klein --help`.

Command NAME is the function, or the Typer app, NAME of `klein_cli.cli.commands.NAME`.
"""


class _Commands(Mapping[str, Any]):
    """The commands by name, imported when they are asked for."""

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARIES)

    def __len__(self) -> int:
        return len(SUMMARIES)

    def __getitem__(self, name: str) -> Any:
        if name not in SUMMARIES:
            raise KeyError(name)
        return _command(name)


@cache
def _command(name: str) -> Any:
    """What Click calls: made of the command's function, or of its app with commands of its own."""
    target = getattr(import_module(f"klein_cli.cli.commands.{name}"), name)
    if isinstance(target, typer.Typer):
        app = target
    else:
        app = typer.Typer(add_completion=False, **_STYLE)
        app.command(name)(target)
    configured(app)
    return get_command(app)


class Klein(TyperGroup):
    """The root command, which lists its commands without importing them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order of `klein --help`."""
        return list(SUMMARIES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command's line in a list; what is run comes from `resolve_command`."""
        summary = SUMMARIES.get(cmd_name)
        return summary and TyperCommand(cmd_name, help=summary)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command that the words begin with, whole, and the rest of them."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and self.commands[name], rest

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters; those of shell completion in a panel of their own."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if param.name in ("install_completion", "show_completion"):
                param.rich_help_panel, param.metavar = "Shell completion", " "
        return params


app = typer.Typer(name="klein", cls=Klein, **_STYLE)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"klein {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def klein(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            metavar=" ",
            help="Print the version and stop.",
        ),
    ] = False,
) -> None:
    """Words into images, with FLUX.2 \\[klein].

    Begin with: klein generate "a red circle on a white background" --model tiny
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (the process's own by default) and return its exit code."""
    return exit_code(partial(_run, arguments))


def _run(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    tell = _tell if "--json" in options else _keep
    try:
        return _command_line(words)
    except KleinError as error:
        if not error.told:
            tell("error", message=error.message, hint=error.hint)
        raise
    except KeyboardInterrupt as interrupt:
        tell("interrupted", made=0, wanted=None)
        to_stderr("interrupted")
        return exit_code_of(interrupt)
    except Exception as bug:
        tell("error", message=f"{type(bug).__name__}: {bug}", hint="this is a bug in klein")
        raise


def _command_line(words: list[str]) -> int:
    """Run it by Typer, whose own exceptions become ours."""
    check_width()
    try:
        code = app(args=words, prog_name="klein", standalone_mode=False)
    except COMPLAINTS as complaint:
        raise explain(complaint) from None
    except OSError as error:
        if error.filename is None or isinstance(error, BrokenPipeError):
            raise
        # A path of the user's that nobody looked at before it was used.
        raise UsageError(
            f"cannot use {os.fsdecode(error.filename)}: {error.strerror}",
            "look at the path and its permissions",
        ) from error
    except typer.Abort as abort:
        interrupt = abort.__cause__
        raise interrupt if isinstance(interrupt, KeyboardInterrupt) else KeyboardInterrupt from None
    return code if isinstance(code, int) else 0


def _tell(kind: str, **facts: Any) -> None:
    """The event that ends the output of --json, for what no report has told of."""
    with suppress(OSError, KleinError):
        print(json.dumps({"event": kind, **facts}), flush=True)  # noqa: T201


def _keep(kind: str, **facts: Any) -> None:
    """Without --json there are no events."""
