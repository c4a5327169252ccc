"""`klein gallery`, and the page that `klein generate --gallery` writes: a folder's images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from klein_cli.cli import options
from klein_cli.cli.terminal.report import Report
from klein_cli.errors import KleinError, UsageError
from klein_cli.output.gallery import Gallery, write_gallery
from klein_cli.output.naming import Destination
from klein_cli.paths import user_path

_NAMED = 3


def gallery(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Where the images are.", show_default=False),
    ],
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", "-y", metavar=" ", help="Replace an index.html that klein did not write."
        ),
    ] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Where the images are that edits were made from, to show them beside; "
            "may be repeated.",
        ),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make one page of a folder's images: filter, sort, and the recipe of each on a click.

    Writes FOLDER/index.html, which needs no network and no other file, and prints its path.
    """
    report = Report(as_json=json, quiet=quiet, verbose=False, silent_stdout=json)
    with report.errors(), report.bar:
        places = [_existing(user_path(place)) for place in images or ()]
        made = write_page(user_path(folder), report, images=places, overwrite=overwrite)
    if not json:
        typer.echo(str(made.page))


def _existing(place: Path) -> Path:
    if not os.path.exists(place):
        raise UsageError(f"--images: there is no {place}", "give a folder of images")
    return place


def gallery_folder(where: Destination, output: str | None) -> Path:
    """The folder of a run's images. Raises UsageError when -o leaves it to where klein runs."""
    is_named = output is not None and not where.is_stdout
    if is_named and (where.folder != Path() or os.path.isdir(os.path.expanduser(output or ""))):
        return where.folder
    raise UsageError("--gallery needs a folder of its own", "give one: -o images/")


def add_page(folder: Path, report: Report, *, overwrite: bool) -> int:
    """Make the page of a run that ends, and tell of it; 1 if that failed. No image suffers."""
    try:
        made = write_page(folder, report, overwrite=overwrite)
    except KleinError as error:
        report.warn(f"{error.message}: this run has no gallery")
        return 1
    report.note(f"gallery: {made.page} ({made.images} images)")
    return 0


def write_page(
    folder: Path, report: Report, *, images: Sequence[Path] = (), overwrite: bool
) -> Gallery:
    """Make the page; warns of files that are not images. Raises KleinError."""
    try:
        made = write_gallery(
            folder,
            images=images,
            overwrite=overwrite,
            on_image=lambda done, of: report.bar.say(f"gallery: {done} of {of} images"),
        )
    except OSError as error:
        raise KleinError(
            f"cannot write the gallery in {folder}: {error.strerror or error}", "make room there"
        ) from None
    if made.unreadable:
        named = ", ".join(str(path) for path in made.unreadable[:_NAMED])
        more = len(made.unreadable) - _NAMED
        report.warn(f"cannot be read: {named}" + (f" and {more} more files" if more > 0 else ""))
    report.event("gallery", path=str(made.page), pictures=made.images)
    return made
