"""The options that `klein bench` has for itself, in the words that --help prints."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from klein_cli.bench.scope import FULL, PARTS, QUICK
from klein_cli.presets import DEFAULT_MODEL
from klein_cli.recipe import MAX_REFERENCES

_what = partial(typer.Option, rich_help_panel="What is measured")
_report = partial(typer.Option, rich_help_panel="Reporting")
_FLAG = " "

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|DIR|REPO",
        help=f"As for klein generate. If left out, random weights at the sizes of {DEFAULT_MODEL} "
        "are written to disk first: 16 GB, gone afterwards. Speed does not depend on the values.",
        show_default=False,
        rich_help_panel="Model and machine",
    ),
]
Keep = Annotated[
    Path | None,
    typer.Option(
        "--keep",
        metavar="FOLDER",
        help="Write the random weights into this new folder and leave them there, for -m FOLDER.",
        rich_help_panel="Model and machine",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What is measured, and how much of it."""

    size: Annotated[
        list[str] | None,
        _what(
            "--size",
            metavar="WxH",
            help="May be given several times. 1024x1024 and 512x512 if left out, or the model's "
            "own.",
        ),
    ] = None
    references: Annotated[
        int,
        _what(
            "--references",
            metavar="N",
            min=0,
            max=MAX_REFERENCES,
            help="Edit so many images, each of the size of the result, instead of drawing from "
            "words.",
        ),
    ] = 0
    only: Annotated[
        str | None,
        _what("--only", metavar="PART,...", help=f"Some parts of the run: {', '.join(PARTS)}."),
    ] = None
    peer: Annotated[
        bool,
        _what(
            "--peer",
            metavar=_FLAG,
            help="diffusers beside klein, as it comes and tuned (cuDNN attention, fused "
            "projections, regional compilation, channels_last VAE), on the same weights in the "
            "same run.",
        ),
    ] = False
    compile_vae: Annotated[
        bool,
        _what(
            "--compile-vae",
            metavar=_FLAG,
            help="With --peer: compile the tuned pipeline's VAE too, which takes minutes.",
        ),
    ] = False
    quick: Annotated[
        bool,
        _what(
            "--quick",
            metavar=_FLAG,
            help="Less of everything: one size unless you name more, fewer rounds, images and "
            "processes, and the page cache left as it is.",
        ),
    ] = False
    rounds: Annotated[
        int | None,
        _what(
            "--rounds",
            metavar="N",
            min=1,
            help=f"Of warm images. {FULL.rounds}, or {QUICK.rounds} with --quick.",
        ),
    ] = None
    pictures: Annotated[
        int | None,
        _what(
            "--images",
            "--pictures",
            metavar="N",
            min=1,
            help=f"Of the throughput. {FULL.pictures}, or {QUICK.pictures} with --quick.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultOptions:
    """Which result is shown, and how."""

    from_file: Annotated[
        Path | None,
        _report(
            "--from",
            metavar="FILE",
            help="Measure nothing: show the result in this file, the output of an earlier run.",
        ),
    ] = None
    as_markdown: Annotated[
        bool, _report("--markdown", metavar=_FLAG, help="Tables in Markdown, alone.")
    ] = False
    as_json: Annotated[
        bool,
        _report(
            "--json",
            metavar=_FLAG,
            help="The line of JSON that ends the output, without the tables before it.",
        ),
    ] = False
    quiet: Annotated[bool, _report("--quiet", "-q", metavar=_FLAG, help="No progress.")] = False
