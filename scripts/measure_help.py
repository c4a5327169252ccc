"""Time `klein --help`, `klein generate --help` and a refused option beside a bare Typer program.

    python scripts/measure_help.py                # a line of JSON a command line
    python scripts/measure_help.py --times 40

The bare program has as many commands as klein, and the command in question has as many options as
klein's, with the same names, help texts and panels, typed `str` or `bool`; it does nothing else.
Both are modules with compiled files, started in turn. `seconds` are of the processors, which other
work on the machine changes less than those of a clock: medians, and the median of the ratios of
neighbours.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

LINES = {
    "help": ["--help"],
    "generate --help": ["generate", "--help"],
    "refused option": ["generate", "a cat", "--no-such-option"],
}
_MODULE = "bare_program"
_START = """import typer

app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)
"""


def bare_program(folder: Path, whole: str = "generate") -> None:
    """Write the bare program to `folder` as the module `bare_program`.

    Of its commands only the one called `whole` has options.
    """
    from typer.main import get_command

    from klein_cli.cli.app import app

    root: Any = get_command(app)
    parts = [_START, *_callback(root)]
    for name in root.commands:
        params = options_of(root.commands[name]) if name == whole else []
        parts += _command(name, root.get_command(None, name).help, params)
    parts.append('\nif __name__ == "__main__":\n    app(prog_name="bare")\n')
    (folder / f"{_MODULE}.py").write_text("".join(parts), encoding="utf-8")


def options_of(command: Any) -> list[Any]:
    """The parameters that a bare program declares, which has help and completion from Typer."""
    typers = ("help", "install_completion", "show_completion")
    return [param for param in command.params if param.name not in typers]


def measured(line: list[str], folder: Path, times: int) -> dict[str, float]:
    """Seconds of klein and of the bare program in `folder` for one command line, in turn."""
    programs = {"klein": "klein_cli", "bare": _MODULE}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(times + 1):
        for name, module in programs.items():
            taken = _run([sys.executable, "-m", module, *line], folder)
            if number:  # the first has the files read and compiled
                seconds[name].append(taken)
    ratios = [ours / theirs for ours, theirs in zip(*seconds.values(), strict=True)]
    return {name: round(median(taken), 4) for name, taken in seconds.items()} | {
        "ratio": round(median(ratios), 3)
    }


def _run(command: list[str], folder: Path) -> float:
    paths = [str(Path(__file__).parents[1]), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, env=environment, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _callback(group: Any) -> Iterator[str]:
    yield "\n@app.callback()\ndef root("
    yield from _parameters(options_of(group))
    yield f") -> None:\n    {_literal(group.help)}\n"


def _command(name: str, help_text: str, params: list[Any]) -> Iterator[str]:
    yield f'\n@app.command("{name}")\ndef {name}('
    yield from _parameters(params)
    yield f") -> None:\n    {_literal(help_text)}\n"


def _parameters(params: list[Any]) -> Iterator[str]:
    for param in params:
        said = f"help={_literal(param.help)}, rich_help_panel={param.rich_help_panel!r}"
        if param.param_type_name == "argument":
            yield f"{param.name}: str = typer.Argument('', {said}), "
        else:
            names = ", ".join(map(repr, (*param.opts, *param.secondary_opts)))
            kind, default = ("bool", "False") if param.is_flag else ("str", "''")
            yield f"{param.name}: {kind} = typer.Option({default}, {names}, {said}), "


def _literal(text: str | None) -> str:
    return repr(inspect.cleandoc(text or ""))


def main() -> int:
    parser = argparse.ArgumentParser(description=inspect.cleandoc(__doc__).splitlines()[0])
    parser.add_argument("--times", type=int, default=25, metavar="N", help="runs of each program")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as name:
        bare_program(Path(name))
        for what, line in LINES.items():
            print(json.dumps({"line": what, **measured(line, Path(name), times)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
