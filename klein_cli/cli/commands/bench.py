"""`klein bench`: how fast, beside diffusers and beside the machine's own limit.

Everything that can be refused is refused before torch is imported.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from klein_cli.bench.scope import FORMAT, FULL, PARTS, QUICK, Scope
from klein_cli.bench.tables import heading, left_out, markdown, tables
from klein_cli.checkpoints.resolve import preset_for, resolve
from klein_cli.cli import options
from klein_cli.cli.commands import bench_options as own
from klein_cli.cli.groups import grouped
from klein_cli.cli.terminal.progress import watched
from klein_cli.cli.terminal.report import Report
from klein_cli.device.packages import check_official
from klein_cli.device.startup import quick_start
from klein_cli.errors import UsageError
from klein_cli.output.png import check_writable
from klein_cli.presets import DEFAULT_MODEL, Preset
from klein_cli.prompts.rows import Defaults, Row, recipe_of
from klein_cli.prompts.sizes import parse_size
from klein_cli.run.interrupts import defer_interrupts
from klein_cli.settings import Settings

_SIZES = ((1024, 1024), (512, 512))
_EVENT = "benched"
_PIPED_WIDTH = 160
_FAR_APART = 5.0
"""Mean levels of 255 from which on two implementations do not make one image: sglang's own
limit for this model. Rounding in bfloat16 makes about 1."""


@grouped(leave_out=("workers", "ray", "server"))
def bench(
    *,
    model: own.Model = None,
    keep: own.Keep = None,
    machine: options.MachineOptions,
    what: own.BenchOptions,
    steps: options.Steps = None,
    shown: own.ResultOptions,
) -> None:
    """Measure klein on this machine: warm, in a batch and from a cold start.

    Beside it stands what the machine can do at best and, with --peer, diffusers. Tables come
    first, one line of JSON last.
    """
    report = Report(
        as_json=shown.as_json, quiet=shown.quiet, verbose=False, silent_stdout=shown.as_json
    )
    with report.errors():
        if shown.from_file is not None:
            result = _read(shown.from_file)
        else:
            settings = machine.settings()
            preset = preset_for(model or DEFAULT_MODEL)
            wanted = _wanted(what, steps, machine.images_per_batch(), preset)
            if model is None:
                check_official("klein bench without -m")
                _check_keep(keep)
            elif keep is not None:
                raise UsageError("--keep is for random weights, and -m names a model", "drop one")
            result = _measure(model, keep, preset, settings, wanted, report)
    _show(result, as_markdown=shown.as_markdown, as_json=shown.as_json)


def _wanted(
    what: own.BenchOptions, steps: int | None, batch_size: int | None, preset: Preset
) -> Scope:
    usual = QUICK if what.quick else FULL
    rounds, pictures = what.rounds or usual.rounds, what.pictures or usual.pictures
    wanted = Scope(
        parts=_parts(what.only),
        amount=replace(usual, rounds=rounds, pictures=pictures),
        peer=what.peer,
        compile_vae=what.compile_vae,
        batch_size=batch_size,
        references=what.references,
        **images_of(preset, steps, what.size, what.quick),
    )
    if what.peer:
        check_official("--peer")
    if what.compile_vae and not what.peer:
        raise UsageError("--compile-vae is for diffusers, which is not measured", "add --peer")
    return wanted


def _parts(only: str | None) -> tuple[str, ...]:
    """The parts of the run, in its own order. Raises UsageError."""
    if only is None:
        return PARTS
    named = [part.strip() for part in only.split(",")]
    for part in named:
        if part not in PARTS:
            raise UsageError(f"--only {only}: there is no {part!r}", f"use {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in named)


def images_of(
    preset: Preset, steps: int | None, sizes: Sequence[str] | None, quick: bool
) -> dict[str, Any]:
    """Sizes, steps and guidance of the images. Raises UsageError for one that is not valid."""
    wanted = [parse_size(size) for size in sizes or ()] or _usual_sizes(preset)[: 1 if quick else 2]
    recipes = [
        recipe_of(
            Row(prompt="a", width=width, height=height), Defaults(preset=preset, steps=steps), 0
        )
        for width, height in dict.fromkeys(wanted)
    ]
    return {
        "sizes": tuple((recipe.width, recipe.height) for recipe in recipes),
        "steps": recipes[0].steps,
        "guidance": recipes[0].guidance,
    }


def _usual_sizes(preset: Preset) -> list[tuple[int, int]]:
    """Those that everybody measures, or the model's own if it makes none of them."""
    fit = [size for size in _SIZES if preset.min_side <= min(size) <= max(size) <= preset.max_side]
    return fit or [(preset.width, preset.height)]


def _check_keep(keep: Path | None) -> None:
    if keep is not None and keep.exists():
        raise UsageError(f"{keep} exists", f"give a new folder, or measure it with -m {keep}")
    if keep is not None:
        check_writable(keep.parent)


def _measure(
    model: str | None,
    keep: Path | None,
    preset: Preset,
    settings: Settings,
    wanted: Scope,
    report: Report,
) -> dict[str, Any]:
    """The result of a run: here torch is imported."""
    started = time.perf_counter()

    def say(what: str) -> None:
        report.bar.say(what)
        if not watched():
            report.note(f"{time.perf_counter() - started:6.1f} s  {what}")

    def announce(what: str) -> None:
        report.bar.say(what)
        report.note(what)

    with report.bar:
        say("starting torch")
        with quick_start(), defer_interrupts():
            from klein_cli.bench.bench import bench as measure
            from klein_cli.bench.random_model import random_model
            from klein_cli.check.metrics import mean_abs_diff
            from klein_cli.pipeline import choose

        chosen = choose(settings, preset)
        source = nullcontext(resolve(model)) if model else random_model(keep, announce)
        with source as snapshot:
            result = measure(snapshot, chosen, wanted, difference=mean_abs_diff, on_event=say)
    warn_of_other_images(result, report)
    return result


def warn_of_other_images(result: Mapping[str, Any], report: Report) -> None:
    """Warn of each side whose images, from the same noise, are not those of klein."""
    for size in result["sizes"]:
        for side, apart in size["pixels"].items():
            if apart > _FAR_APART:
                report.warn(
                    f"the images of klein and {side} are {apart:.1f} of 255 apart: they are not "
                    "the same; klein verify compares them in detail"
                )


def _read(path: Path) -> dict[str, Any]:
    """The last result in a file that holds the output of `klein bench`. Raises UsageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"cannot read {path}: {why}", "give --from a file") from None
    for line in reversed(lines):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and found.get("event") == _EVENT:
                if found.get("format") == FORMAT:
                    return found
                raise UsageError(
                    f"{path} was written by another version of klein ({found.get('format')})",
                    "show it with that version",
                )
    raise UsageError(f"{path} holds no result", "make one: klein bench --json > FILE")


def _show(result: dict[str, Any], *, as_markdown: bool, as_json: bool) -> None:
    """Tables and the line of JSON, or one of the three alone, on standard output."""
    if as_markdown:
        typer.echo(markdown(result), nl=False)
        return
    if not as_json:
        _print_tables(result)
    typer.echo(json.dumps({"event": _EVENT, **result}))


def _print_tables(result: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)
    console.print(Text(heading(result)))
    for table in tables(result):
        shown = Table(title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD)
        for number, name in enumerate(table.head):
            shown.add_column(Text(name), justify="left" if number == 0 else "right")
        for row in table.rows:
            shown.add_row(*map(Text, row))
        console.print(shown)
        for note in table.notes:
            console.print(Padding(Text(note), (0, 2)))
        console.print()
    for line in left_out(result):
        console.print(Text(line))
