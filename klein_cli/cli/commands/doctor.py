"""`klein doctor`: what this machine and installation can do, and what to do about the rest."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from klein_cli import __version__
from klein_cli.cli.terminal.text import home_as_tilde, printable

if TYPE_CHECKING:
    from klein_cli.check.finding import Finding

_STATES = {
    "ok": ("ok", "green"),
    "note": ("note", "yellow"),
    "bad": ("BAD", "red"),
    "skipped": ("-", "white"),
}
"""The states of `klein_cli.check.finding`, as they are printed."""
_NAMES = 18


def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|DIR|REPO",
            help="Check this model alone; if left out, all that are on this machine.",
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
    """Check GPU, driver, torch, kernels, disks and models: exit code 0 if all is well, 1 if not.

    Every kernel that klein may use computes something small, and the embedded model draws an image
    that is compared with what it should be.
    """
    from klein_cli.check.doctor import examine
    from klein_cli.check.finding import BAD
    from klein_cli.cli.terminal.report import Report

    report = Report(as_json=False, quiet=False, verbose=False, silent_stdout=as_json)
    findings = []
    with report.bar:
        for finding in examine(model, deep=deep, on_event=report.doing):
            findings.append(finding)
            if not as_json:
                with report.bar.aside():
                    typer.echo("\n".join(_lines(finding)))
    bad = sum(finding.state == BAD for finding in findings)
    if as_json:
        typer.echo(_as_json(findings, passed=not bad))
    else:
        typer.echo(f"\n{bad} thing{'s' * (bad != 1)} to fix" if bad else "\nall is well")
    raise typer.Exit(1 if bad else 0)


def _lines(finding: Finding) -> Iterator[str]:
    """A finding as a person reads it, its hint on a line of its own."""
    word, colour = _STATES[finding.state]
    word = f"{word:>4}"
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        word = typer.style(word, fg=colour, bold=finding.state == "bad")
    yield f"{word}  {finding.name:<{_NAMES}}  {_shown(finding.said)}"
    if finding.hint:
        yield f"{'':>4}  {'':<{_NAMES}}  -> {_shown(finding.hint)}"


def _shown(text: str) -> str:
    return printable(home_as_tilde(text))


def _as_json(findings: list[Finding], *, passed: bool) -> str:
    report = {"klein": __version__, "passed": passed, "findings": [asdict(f) for f in findings]}
    home = json.dumps(os.path.expanduser("~"))[1:-1]
    text = json.dumps(report, indent=1)
    return text.replace(home, "~") if len(home) > 1 else text
