"""`klein info`: what images say of how they were made, and what files of weights are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from klein_cli.checkpoints.about import about
from klein_cli.checkpoints.given import is_file
from klein_cli.cli import options
from klein_cli.cli.terminal.preview import preview
from klein_cli.cli.terminal.text import printable, to_stderr
from klein_cli.errors import KleinError
from klein_cli.output.described import given
from klein_cli.output.reading import Record, read_record

_MANY = 9


def info(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMG|FILE", help="Images that klein made, or files of models: what is in them."
        ),
    ],
    show: options.Show = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a file, each on its own line.")
    ] = False,
) -> None:
    """Show the recipe that travels inside an image, or what a file of weights is.

    Of an adapter: its kind, rank and strength, the model that it is for, its trainer and trigger
    words, and what klein does with it.
    """
    failures: list[KleinError] = []
    shown = preview(wanted=show and not as_json)
    for number, path in enumerate(images):
        try:
            if is_file(path):
                _show_model(path, number, as_json=as_json)
                continue
            record = read_record(path)
        except KleinError as error:
            if len(images) == 1:
                raise
            failures.append(error)
            to_stderr(f"error: {error.message}")
            continue
        if as_json:
            typer.echo(json.dumps({"file": str(path), **record.table()}))
        else:
            typer.echo(("\n" if number else "") + described(path, record))
            if shown is not None:
                shown.show(path)
    if failures:
        to_stderr(f"hint: {failures[-1].hint}")
        raise typer.Exit(1 if len(failures) < len(images) else failures[0].exit_code)


def _show_model(path: Path, number: int, *, as_json: bool) -> None:
    facts = about(path)
    if as_json:
        typer.echo(json.dumps({"path": str(path), **facts}))
        return
    lines = [f"{name:>12}  {printable(value)}" for name, value in facts.items()]
    typer.echo(("\n" if number else "") + "\n".join([printable(path), *lines]))


def described(path: Path, record: Record) -> str:
    """A record as lines for a person. Nothing in it can move the cursor of a terminal."""
    recipe, settings = record.recipe, record.settings
    place = " ".join(word for word in (record.repo, record.revision) if word)
    rows = [
        ("prompt", recipe.prompt),
        ("negative", recipe.negative_prompt),
        *given(recipe),
        ("seed", recipe.seed),
        ("size", f"{recipe.width}x{recipe.height}"),
        ("steps", recipe.steps),
        ("guidance", f"{recipe.guidance:g}"),
        ("sigmas", _sigmas(record.sigmas)),
        ("model", recipe.model + (f" ({place})" if place else "")),
        *(("part", f"{part.part}: {part.name}, {part.kind}") for part in record.parts),
        ("weights", record.weights),
        ("computed", _listed(asdict(settings))),
        ("versions", _listed(record.provenance)),
        ("step down", record.step_down),
        ("not known", ", ".join(record.unknown) or None),
    ]
    lines = [f"{name:>10}  {printable(value)}" for name, value in rows if value is not None]
    return "\n".join([printable(path), *lines])


def _listed(table: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in table.items())


def _sigmas(levels: Sequence[float]) -> str | None:
    if len(levels) <= _MANY:
        return ", ".join(f"{level:.4g}" for level in levels) or None
    first, second, *_, last = levels
    return f"{first:.4g}, {second:.4g} ... {last:.4g} ({len(levels)} of them)"
