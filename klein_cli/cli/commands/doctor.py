"""`klein doctor`: what this machine and installation can do, and what to do about the rest."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from klein_cli import __version__
from klein_cli.check.doctor import Wanted, examine
from klein_cli.check.finding import BAD, NOTE, OK, SKIPPED, Finding
from klein_cli.cli.terminal.report import Report
from klein_cli.cli.terminal.text import home_as_tilde, printable

_WORDS = {OK: "ok", NOTE: "note", BAD: "BAD", SKIPPED: "-"}
_COLOURS = {OK: "green", NOTE: "yellow", BAD: "red", SKIPPED: "white"}
_NAMES = 18


def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|DIR|REPO",
            help="Look at this model alone; at all that are on this machine if left out.",
        ),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", metavar=" ", help="Also read every byte of the models and check its hash."
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            metavar=" ",
            help="One JSON object, for a bug report: no secrets, no prompts, ~ for your home.",
        ),
    ] = False,
) -> None:
    """Look at GPU, driver, torch, kernels, disks and models: exit code 0 if all is well, 1 if not.

    Every kernel that klein may use computes something small, and the embedded model draws a picture
    that is compared with the one it should be.
    """
    report = Report(as_json=False, quiet=False, verbose=False, silent_stdout=as_json)
    findings = []
    with report.bar:
        for finding in examine(Wanted(model=model, deep=deep), report.bar.say):
            findings.append(finding)
            if not as_json:
                with report.bar.aside():
                    typer.echo("\n".join(_lines(finding)))
    bad = [finding for finding in findings if finding.state == BAD]
    if as_json:
        typer.echo(json.dumps(_as_json(findings), indent=1))
    else:
        many = f"{len(bad)} thing{'s' * (len(bad) != 1)} to mend" if bad else "all is well"
        typer.echo(f"\n{many}")
    raise typer.Exit(1 if bad else 0)


def _lines(finding: Finding) -> Iterator[str]:
    """A finding as a person reads it, its hint on a line of its own."""
    word = f"{_WORDS[finding.state]:>4}"
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        word = typer.style(word, fg=_COLOURS[finding.state], bold=finding.state == BAD)
    yield f"{word}  {finding.name:<{_NAMES}}  {_shown(finding.said)}"
    if finding.hint:
        yield f"{'':>4}  {'':<{_NAMES}}  -> {_shown(finding.hint)}"


def _shown(text: str) -> str:
    return printable(home_as_tilde(text))


def _as_json(findings: list[Finding]) -> dict[str, Any]:
    return {
        "klein": __version__,
        "passed": all(finding.state != BAD for finding in findings),
        "findings": [_without_home(asdict(finding)) for finding in findings],
    }


def _without_home(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_home(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_home(entry) for entry in value]
    return home_as_tilde(value) if isinstance(value, str) else value
