"""How quickly a command line answers that draws nothing: what it imports, and what that costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from measure_help import LINES, bare_program, measured
from typer.main import get_command

from klein_cli import __version__
from klein_cli.cli.app import SUMMARIES, app


def imported(*line: str) -> set[str]:
    """The modules that `klein` has imported when it ends."""
    script = (
        "import sys\n"
        "from klein_cli.__main__ import main\n"
        "main()\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *line], capture_output=True, text=True, check=True
    )
    return set(done.stderr.splitlines())


@pytest.mark.process
def test_the_version_needs_nothing_but_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "klein_cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"klein {__version__}\n"
    assert not {"typer", "click", "rich"} & imported("--version")


ENDING = """
import atexit, sys, threading, time
import klein_cli.__main__ as klein
atexit.register(print, "goodbye")
class LooksAtTheEnd:
    def __del__(self): print("taken to pieces")
sys.modules["torch"] = LooksAtTheEnd()
def main():
    print("said", end="")
    {more}
    return 3
klein.main = main
klein.run()
"""


@pytest.mark.process
def test_the_process_ends_without_taking_torch_to_pieces() -> None:
    """Which takes half a second; all that is to be done at the end is done."""
    done = ended("pass")
    assert (done.returncode, done.stdout) == (3, "saidgoodbye\n")


@pytest.mark.process
def test_a_thread_at_work_is_waited_for() -> None:
    """A file may still be on its way to the disk."""
    work = "threading.Thread(target=lambda: (time.sleep(.2), print(' written'))).start()"
    done = ended(work)
    assert done.returncode == 3
    assert done.stdout.startswith("said written\ngoodbye\n")


def ended(more: str) -> subprocess.CompletedProcess[str]:
    """`klein` as it ends, after doing more."""
    script = ENDING.format(more=more)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.process
def test_commands_are_imported_when_they_run() -> None:
    """One of them imported at the top would be paid by all."""
    of_commands = {f"klein_cli.cli.commands.{name}" for name in SUMMARIES}
    assert not of_commands & imported("--help")
    assert of_commands & imported("info", "--help") == {"klein_cli.cli.commands.info"}
    for line in (["generate", "--help"], ["generate", "a cat", "--zzz"]):
        found = imported(*line)
        assert of_commands & found == {"klein_cli.cli.commands.generate"}
        assert not {"klein_cli.cli.generation", "klein_cli.run.runner"} & found


def test_the_list_of_commands_says_what_their_own_help_says() -> None:
    """The list is a table of its own, so that it need not import them."""
    root = get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        first, *_ = inspect.cleandoc(command.help).split("\n\n")
        assert SUMMARIES[name] == " ".join(first.split()), name


@pytest.mark.process
@pytest.mark.parametrize("what", LINES)
def test_it_costs_little_more_than_typer_itself(what: str, tmp_path: Path) -> None:
    """Measured at 1.04, 1.08 and 0.73; with every command imported, --help was at 1.7."""
    bare_program(tmp_path)
    assert measured(LINES[what], tmp_path, times=5)["ratio"] < 1.4
