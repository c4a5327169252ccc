"""The options that `klein bench` has for itself, in the words that --help prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from klein_cli.bench.scope import FULL, PARTS, QUICK
from klein_cli.presets import DEFAULT_MODEL

_WHAT = "What is measured"
_REPORT = "What is said"
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
        typer.Option(
            "--size",
            metavar="WxH",
            help="May be given several times. 1024x1024 and 512x512 if left out, or the model's "
            "own.",
            rich_help_panel=_WHAT,
        ),
    ] = None
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="PART,...",
            help=f"Some parts of the run: {', '.join(PARTS)}.",
            rich_help_panel=_WHAT,
        ),
    ] = None
    peer: Annotated[
        bool,
        typer.Option(
            "--peer",
            metavar=_FLAG,
            help="diffusers beside klein, as it comes and tuned (cuDNN attention, fused "
            "projections, regional compilation, channels_last VAE), on the same weights in the "
            "same run.",
            rich_help_panel=_WHAT,
        ),
    ] = False
    compile_vae: Annotated[
        bool,
        typer.Option(
            "--compile-vae",
            metavar=_FLAG,
            help="With --peer: compile the tuned pipeline's VAE too, which takes minutes.",
            rich_help_panel=_WHAT,
        ),
    ] = False
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            metavar=_FLAG,
            help="Less of everything: one size unless you name more, fewer rounds, pictures and "
            "processes, and the page cache left as it is.",
            rich_help_panel=_WHAT,
        ),
    ] = False
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            metavar="N",
            min=1,
            help=f"Of warm pictures. {FULL.rounds}, or {QUICK.rounds} with --quick.",
            rich_help_panel=_WHAT,
        ),
    ] = None
    pictures: Annotated[
        int | None,
        typer.Option(
            "--pictures",
            metavar="N",
            min=1,
            help=f"Of the throughput. {FULL.pictures}, or {QUICK.pictures} with --quick.",
            rich_help_panel=_WHAT,
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultOptions:
    """Which result is shown, and how."""

    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Measure nothing: show the result in this file, the output of an earlier run.",
            rich_help_panel=_REPORT,
        ),
    ] = None
    as_markdown: Annotated[
        bool,
        typer.Option(
            "--markdown", metavar=_FLAG, help="Tables in Markdown, alone.", rich_help_panel=_REPORT
        ),
    ] = False
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            metavar=_FLAG,
            help="The line of JSON that ends the output, without the tables before it.",
            rich_help_panel=_REPORT,
        ),
    ] = False
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", metavar=_FLAG, help="No progress.", rich_help_panel=_REPORT),
    ] = False
