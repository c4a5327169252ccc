"""Whole processes: their time, their split, and what is said when one fails."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from klein_cli.bench.cold import phases
from klein_cli.bench.processes import generate_command, lines, run
from klein_cli.cli.app import app
from klein_cli.errors import KleinError
from klein_cli.pipeline import choose
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings

RECIPE = Recipe(prompt="a cat", seed=3, width=64, height=32, steps=2, guidance=1.0, model="small")
FAILING = "import sys; print(1, flush=True); print('a\\nb\\nc\\nd', file=sys.stderr); sys.exit(3)"


def test_every_setting_reaches_the_process() -> None:
    """A setting that is left out would be measured in one part of the run and not in another."""
    from typer.main import get_command

    settings = Settings(
        device="cuda:1", dtype="float16", attention="eager", engine="diffusers", rng="cuda"
    )
    command = generate_command(Path("folder"), settings, RECIPE, "a cat")
    arguments = command[command.index("generate") + 1 :]
    generate = get_command(app).commands["generate"]  # type: ignore[attr-defined]
    parsed = generate.make_context("generate", list(arguments)).params
    for field in fields(settings):
        assert parsed[field.name] == getattr(settings, field.name)
    assert (parsed["size"], parsed["steps"], parsed["seed"]) == ("64x32", 2, 3)
    assert (parsed["model"], parsed["prompt"]) == ("folder", "a cat")


@pytest.mark.process
def test_the_split_of_a_real_run(small_snapshot: Path, tmp_path: Path) -> None:
    """What `klein generate -v` says adds up to what the clock says."""
    settings = choose(Settings(device="cpu"))
    command = generate_command(small_snapshot, settings, RECIPE, "a cat", "-v")
    seconds, out, said = run([*command, "-o", str(tmp_path / "cat.png")])
    assert out.strip() == str(tmp_path / "cat.png")
    split = phases(said, seconds)
    assert {"load", "encode", "denoise", "decode"} <= split.keys()
    assert sum(split.values()) == pytest.approx(seconds, abs=0.05)


def test_phases_of_any_name_are_read() -> None:
    said = "seed: 7\n      load     1.25 s\n  warming up    0.50 s\n    in all     2.00 s\n"
    assert phases(said, 2.25) == {"load": 1.25, "warming up": 0.5, "Python's start and end": 0.25}
    assert phases("nothing is told\n", 2.0) == {}


@pytest.mark.process
def test_a_process_that_fails_is_named_with_its_last_words() -> None:
    for listen in (run, lambda command: list(lines(command))):
        with pytest.raises(KleinError, match="ended with 3: b; c; d") as caught:
            listen([sys.executable, "-c", FAILING])
        assert sys.executable in caught.value.hint


@pytest.mark.process
def test_lines_come_while_the_process_runs() -> None:
    """Images are timed by when they are told of, not by when the process ends."""
    script = "import time; print(1, flush=True); time.sleep(0.3); print(2, flush=True)"
    (first, one), (second, two) = lines([sys.executable, "-c", script])
    assert (one, two) == ("1\n", "2\n")
    assert second - first > 0.2


@pytest.mark.process
def test_a_process_is_not_left_behind() -> None:
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    heard = lines([sys.executable, "-c", script])
    started, pid = next(heard)
    heard.close()  # type: ignore[attr-defined]
    assert time.perf_counter() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
