"""Time `klein --help`, `klein generate --help` and a refused option beside a bare Typer program.

    python scripts/measure_help.py                # a line of JSON a command line
    python scripts/measure_help.py --times 40

The bare program has klein's commands, and those options of them with the same names, help texts and
panels, typed `str` or `bool`, and does nothing else. Both are modules with compiled files, started
in turn: medians of their seconds, and the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
import time
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


def bare_program(folder: Path) -> None:
    """Write the bare program to `folder` as the module `bare_program`."""
    from typer.main import get_command

    from klein_cli.cli.app import app

    root = get_command(app)
    parts = [_START, *_callback("app", root)]
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            parts.append(f'\n{name} = typer.Typer()\napp.add_typer({name}, name="{name}")\n')
            parts += _callback(name, command)
            for inner in command.list_commands(None):
                parts += _command(name, inner, command.get_command(None, inner))
        else:
            parts += _command("app", name, root.get_command(None, name))
    parts.append('\nif __name__ == "__main__":\n    app(prog_name="bare")\n')
    (folder / f"{_MODULE}.py").write_text("".join(parts), encoding="utf-8")


def options_of(command: Any) -> list[Any]:
    """The parameters that a bare program must declare for itself."""
    return [p for p in command.params if p.name not in ("install_completion", "show_completion")]


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
    import os

    paths = [str(Path(__file__).parents[1]), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, env=environment, check=False)
    return time.perf_counter() - started


def _callback(app: str, group: Any) -> Iterator[str]:
    yield f"\n@{app}.callback()\ndef {app}_root("
    yield from _parameters(options_of(group))
    yield f") -> None:\n    {_literal(group.help)}\n"


def _command(app: str, name: str, command: Any) -> Iterator[str]:
    yield f'\n@{app}.command("{name}")\ndef {app}_{name}('
    yield from _parameters(options_of(command))
    yield f") -> None:\n    {_literal(command.help)}\n"


def _parameters(params: list[Any]) -> Iterator[str]:
    for param in params:
        if param.name == "help":
            continue
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
