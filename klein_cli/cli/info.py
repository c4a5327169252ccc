"""`klein info`: what pictures say of how they were made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from klein_cli.cli.report import printable
from klein_cli.errors import KleinError
from klein_cli.output.reading import Record, read_record


def info(
    pictures: Annotated[
        list[Path], typer.Argument(metavar="IMG", help="Pictures that klein made.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a picture, each on its own line.")
    ] = False,
) -> None:
    """Show the recipe that travels inside a picture."""
    failures: list[KleinError] = []
    for number, path in enumerate(pictures):
        try:
            record = read_record(path)
        except KleinError as error:
            if len(pictures) == 1:
                raise
            failures.append(error)
            typer.echo(f"error: {error.message}", err=True)
            continue
        if as_json:
            typer.echo(json.dumps({"file": str(path), **asdict(record)}))
        else:
            typer.echo(("\n" if number else "") + described(path, record))
    if failures:
        typer.echo(f"hint: {failures[-1].hint}", err=True)
        raise typer.Exit(1 if len(failures) < len(pictures) else failures[0].exit_code)


def described(path: Path, record: Record) -> str:
    """A record as lines for a person. Nothing in it can move the cursor of a terminal."""
    recipe, settings = record.recipe, record.settings
    versions = ", ".join(f"{name} {value}" for name, value in record.provenance.items())
    rows = {
        "prompt": recipe.prompt,
        "negative": recipe.negative_prompt,
        "seed": recipe.seed,
        "size": f"{recipe.width}x{recipe.height}",
        "steps": recipe.steps,
        "guidance": f"{recipe.guidance:g}",
        "model": recipe.model + (f" at {record.revision}" if record.revision else ""),
        "computed": f"{settings.device}, {settings.dtype}, attention {settings.attention}, "
        f"engine {settings.engine}, noise from {settings.rng}",
        "versions": versions,
        "step down": record.step_down,
    }
    lines = [f"{name:>10}  {printable(value)}" for name, value in rows.items() if value is not None]
    return "\n".join([printable(path), *lines])
