"""`klein`: the commands, and how whatever goes wrong leaves the process.

A KleinError becomes two lines on stderr and its exit code; a bug keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from klein_cli import __version__
from klein_cli.cli.commands.bench import bench
from klein_cli.cli.commands.doctor import doctor
from klein_cli.cli.commands.gallery import gallery
from klein_cli.cli.commands.generate import generate
from klein_cli.cli.commands.info import info
from klein_cli.cli.commands.models import models
from klein_cli.cli.commands.reproduce import reproduce
from klein_cli.cli.commands.verify import verify
from klein_cli.cli.config import configured
from klein_cli.cli.terminal.stdio import mend_streams
from klein_cli.cli.terminal.text import to_stderr
from klein_cli.cli.usage import COMPLAINTS, explain
from klein_cli.errors import KleinError

_INTERRUPTED = 130


class Klein(TyperGroup):
    """The root command, whose help shows the options of shell completion apart."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters; those of shell completion in a panel of their own."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if param.name in ("install_completion", "show_completion"):
                param.rich_help_panel, param.metavar = "Shell completion", " "
        return params


app = typer.Typer(
    name="klein",
    cls=Klein,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(verify)
app.command()(info)
app.command()(reproduce)
app.command()(bench)
app.command()(gallery)
app.command()(doctor)
app.add_typer(models)
configured(app)


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
    """Words into pictures, with FLUX.2 \\[klein].

    Begin with: klein generate "a red circle on a white background" --model tiny
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (the process's own by default) and return its exit code."""
    mend_streams()
    try:
        code = app(args=arguments, prog_name="klein", standalone_mode=False)
        sys.stdout.flush()
    except COMPLAINTS as complaint:
        return _tell(explain(complaint))
    except KleinError as error:
        return _tell(error)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    return code if isinstance(code, int) else 0


def _tell(error: KleinError) -> int:
    to_stderr(f"error: {error.message}\nhint: {error.hint}")
    return error.exit_code
