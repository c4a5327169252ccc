"""What goes to stdout and what to stderr, in each of the ways to be told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from klein_cli.cli.terminal.report import Report
from klein_cli.errors import KleinError
from klein_cli.recipe import Recipe
from klein_cli.run.events import Failed, Saved, Stopped
from klein_cli.run.jobs import Job
from klein_cli.text.tokenizer import TokenizedPrompt

JOB = Job(
    index=3,
    recipe=Recipe(
        prompt="a café", seed=5, width=256, height=128, steps=4, guidance=1.0, model="tiny"
    ),
    path=Path("d/cat.png"),
    exact=False,
)
SAVED = Saved(job=JOB, path=Path("d/cat-2.png"), seconds=1.23456)
TOKENS = TokenizedPrompt(ids=(), length=19, cut="tail", cut_tokens=1, tokens=7, room=500)
FAILED = Failed(job=JOB, error=KleinError("the disk is full", "make room"))


def report(
    *, as_json: bool = False, quiet: bool = False, verbose: bool = False, silent: bool = False
) -> Report:
    return Report(as_json=as_json, quiet=quiet, verbose=verbose, silent_stdout=silent)


def test_paths_go_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    plain = report()
    plain.note("seed: 5")
    plain.warn("careful")
    plain.detail("only with -v")
    plain.saved(SAVED)
    plain.failed(FAILED)
    said = capsys.readouterr()
    assert said.out == "d/cat-2.png\n"
    assert said.err == (
        "seed: 5\nwarning: careful\nerror: image 3: the disk is full\nhint: make room\n"
    )


def test_quiet_keeps_paths_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = report(quiet=True)
    quiet.note("seed: 5")
    quiet.warn("careful")
    quiet.saved(SAVED)
    quiet.failed(FAILED)
    said = capsys.readouterr()
    assert said.out == "d/cat-2.png\n"
    assert "seed" not in said.err
    assert "careful" in said.err
    assert "the disk is full" in said.err


def test_verbose_tells_details(capsys: pytest.CaptureFixture[str]) -> None:
    report(verbose=True).detail("load 1.2 s")
    assert capsys.readouterr().err == "load 1.2 s\n"
    report(verbose=True, quiet=True).detail("load 1.2 s")
    assert capsys.readouterr().err == ""


def test_json_puts_one_event_a_line_on_stdout_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine = report(as_json=True)
    machine.note("seed: 5")
    machine.warn("careful")
    machine.planned(JOB, TOKENS)
    machine.saved(SAVED)
    machine.failed(FAILED)
    machine.stopped(Stopped(error=KleinError("the disk is full", "make room")))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = ["warning", "planned", "picture", "failed", "error"]
    assert [event["event"] for event in events] == kinds
    facts = {"index": 3, "seed": 5, "width": 256, "height": 128, "prompt": "a café"}
    assert events[1] == (
        {"event": "planned", "path": "d/cat.png", "steps": 4, "tokens": 7, "cut": "tail"} | facts
    )
    assert events[2] == {"event": "picture", "path": "d/cat-2.png", "seconds": 1.235} | facts
    assert events[3]["error"] == "the disk is full"


def test_a_picture_on_stdout_is_alone_there(capsys: pytest.CaptureFixture[str]) -> None:
    piped = report(silent=True)
    piped.saved(Saved(job=JOB, path=None, seconds=1.0))
    piped.planned(JOB, None)
    assert capsys.readouterr().out == ""


def test_a_planned_picture_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    plain = report()
    plain.planned(JOB, TOKENS)
    plain.planned(JOB, None)
    first, second = capsys.readouterr().out.splitlines()
    assert first == 'd/cat.png  seed 5  256x128  4 steps  7 tokens, cut from "tail"  "a café"'
    assert "length unknown" in second


def test_the_first_bug_shows_its_traceback_and_the_rest_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def bug() -> Exception:
        try:
            raise ZeroDivisionError("oops")
        except ZeroDivisionError as error:
            return error

    plain = report()
    plain.failed(Failed(job=JOB, error=bug()))
    plain.failed(Failed(job=JOB, error=bug()))
    err = capsys.readouterr().err
    assert err.count("Traceback") == 1
    assert err.count("error: image 3: ZeroDivisionError: oops") == 2


def test_every_event_is_documented_and_every_documented_one_exists() -> None:
    repository = Path(__file__).parents[3]
    others = {"verify.py", "models.py", "bench.py", "doctor.py"}  # whose events are their own
    rooms = ("cli", "run")
    sources = [
        path
        for room in rooms
        for path in (repository / "klein_cli" / room).rglob("*.py")
        if path.name not in others
    ]
    told = {
        kind
        for source in sources
        for kind in re.findall(r"\bevent\(\s*\"(\w+)\"", source.read_text(encoding="utf-8"))
    }
    page = (repository / "docs" / "runs.md").read_text(encoding="utf-8")
    table = page.partition("\n## Events for programs\n")[2].partition("\n## ")[0]
    assert told == set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
