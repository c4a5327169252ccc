"""Whole processes: the commands that a user would type, run and listened to."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from klein_cli.errors import KleinError, ModelError, OutOfMemoryError, UsageError
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings

_LAST_LINES = 3
_ERROR = re.compile(r"^error: (.*)\nhint: (.*)$", re.MULTILINE)
_KINDS = {kind.exit_code: kind for kind in (UsageError, ModelError, OutOfMemoryError)}


def generate_command(root: Path, settings: Settings, recipe: Recipe, *more: str) -> list[str]:
    """`klein generate` for images shaped as `recipe`, with every one of the settings."""
    machine = [
        word
        for field in fields(settings)
        for word in (f"--{field.name.replace('_', '-')}", getattr(settings, field.name))
    ]
    image = ["--size", f"{recipe.width}x{recipe.height}", "--steps", str(recipe.steps)]
    command = [sys.executable, "-m", "klein_cli", "generate", "-m", str(root)]
    return [*command, *image, "--seed", str(recipe.seed), *machine, *more]


def lines(command: Sequence[str]) -> Iterator[tuple[float, str]]:
    """Run a command to its end: each line of its output, and when it came, in seconds of a clock.

    Raises KleinError with its last words when it fails. A process that is not listened to any more
    is killed.
    """
    with (
        tempfile.TemporaryFile("w+", errors="replace") as stderr,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield time.perf_counter(), line
            process.wait()
        finally:
            process.kill()
        if process.returncode:
            stderr.seek(0)
            raise _failure(command, process.returncode, stderr.read())


def run(command: Sequence[str]) -> tuple[float, str, str]:
    """Run a command: (seconds from its start to its end, its output, its errors).

    Raises KleinError with its last words when it fails.
    """
    started = time.perf_counter()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise _failure(command, done.returncode, done.stderr)
    return seconds, done.stdout, done.stderr


def _failure(command: Sequence[str], code: int, stderr: str) -> KleinError:
    """What klein said of itself, or else the last lines of a process of another kind."""
    reported = _ERROR.search(stderr)
    if reported:
        kind = _KINDS.get(code, KleinError)
        return kind(f"in a timed process: {reported[1]}", reported[2])
    last = "; ".join(stderr.strip().splitlines()[-_LAST_LINES:])
    return KleinError(
        f"a timed process ended with {code}: {last or 'no message'}",
        f"run it by itself: {shlex.join(command)}",
    )
