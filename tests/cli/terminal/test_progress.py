"""The bar: seen on a terminal, absent elsewhere, and never in the way of the results."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")

SCRIPT = """
from pathlib import Path
from klein_cli.cli.terminal.report import Report
from klein_cli.recipe import Recipe
from klein_cli.run.jobs import Job
from klein_cli.run.events import Failed, Saved
from klein_cli.errors import KleinError
import sys, time
recipe = Recipe(prompt="a", seed=5, width=16, height=16, steps=4, guidance=1.0, model="tiny")
job = Job(index=1, recipe=recipe, path=Path("cat.png"), exact=False)
report = Report(as_json=False, quiet="quiet" in sys.argv, verbose=False, silent_stdout=False)
with report.bar:
    report.bar.say("loading [bold]tiny")
    report.bar.expect(1 if "one" in sys.argv else 4)
    report.bar.reach(0.5)
    if "one" in sys.argv:
        sys.exit()
    report.saved(Saved(job=job, path=job.path, seconds=1.0))
    report.bar.reach(0.5)
    time.sleep(0.2)
    report.failed(Failed(job=job, error=KleinError("oops", "try again")))
"""


def on_a_terminal(*arguments: str, script: str = SCRIPT, **environment: str) -> tuple[str, str]:
    """What the script says to its stdout, a pipe, and to its stderr, a terminal."""
    ours, theirs = pty.openpty()
    clean = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    running = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        env=clean | {"TERM": "xterm-256color", "COLUMNS": "80"} | environment,
    )
    said = bytearray()

    def read() -> None:
        # A terminal that nobody reads fills up, and whoever writes to it waits.
        while b"\nend" not in said:
            said.extend(os.read(ours, 65536))

    reading = threading.Thread(target=read)
    reading.start()
    out, _ = running.communicate()
    os.write(theirs, b"\nend\n")
    reading.join()
    os.close(ours)
    os.close(theirs)
    assert running.returncode == 0
    return out.decode(), said.decode()


def test_paths_reach_a_pipe_while_the_bar_is_on_the_terminal() -> None:
    # Rich redirects stdout to the bar's own stream unless it is told not to.
    out, terminal = on_a_terminal()
    assert out == "cat.png\n"
    assert "1 of 4 images" in terminal
    assert "cat.png" not in terminal


def test_the_bar_tells_pictures_rate_time_left_and_failures() -> None:
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", on_a_terminal(COLUMNS="160")[1])
    said = re.findall(r"2 of 4 images, [\d.]+ a second, 0:00:0\d left, 1 failed", plain)
    assert said


def test_one_picture_is_not_counted() -> None:
    terminal = on_a_terminal("one")[1]
    assert "loading" in terminal
    assert "of 1" not in terminal


def test_no_color_is_respected() -> None:
    colour = "\x1b[3"
    assert colour in on_a_terminal()[1]
    assert colour not in on_a_terminal(NO_COLOR="1")[1]


def test_quiet_and_dumb_terminals_have_no_bar() -> None:
    told = "error: image 1: oops\r\nhint: try again\r\n\r\nend\r\n"
    assert on_a_terminal("quiet") == ("cat.png\n", told)
    assert on_a_terminal(TERM="dumb") == ("cat.png\n", told)


def test_a_terminal_of_an_old_encoding_sees_no_escapes() -> None:
    terminal = on_a_terminal(PYTHONIOENCODING="ascii")[1]
    assert "1 of 4 images" in terminal
    assert "\\u" not in terminal


def test_a_pipe_has_no_bar() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (
        "cat.png\n",
        "error: image 1: oops\nhint: try again\n",
    )


ONE = """
import sys, time
from klein_cli.cli.terminal.progress import Bar
bar = Bar(shown=True)
with bar:
    for said in ("loading tiny", "reading the prompt"):
        bar.say(said)
        time.sleep(0.5)
    bar.expect(1)
    bar._began -= float(sys.argv[1])
    bar.reach(0.25)
    bar.say("step 2 of 4")
    time.sleep(0.5)
    bar.reach(1)
    bar.say("decoding")
    time.sleep(0.5)
"""


@pytest.mark.parametrize(("spent", "left"), [("10", "about 30 s left"), ("40", "about 0:02:0")])
def test_of_one_picture_every_phase_is_told_and_how_long_it_takes(spent: str, left: str) -> None:
    _, terminal = on_a_terminal(spent, script=ONE)
    for said in ("loading tiny", "reading the prompt", f"step 2 of 4, {left}", "decoding"):
        assert said in terminal
    assert "decoding, about" not in terminal


def test_a_whole_run_tells_its_phases_on_a_terminal_and_nothing_in_a_pipe(tmp_path: Path) -> None:
    script = "import sys; from klein_cli.cli.app import main; sys.exit(main(sys.argv[1:]))"
    options = ["-m", "tiny", "-s", "1", "--steps", "6", "--size", "128x128", "-y"]
    line = ["generate", "a red circle", *options, "-o", str(tmp_path / "a.png")]
    out, terminal = on_a_terminal(*line, script=script)
    assert out == f"{tmp_path / 'a.png'}\n"
    # Loading tiny is over before the bar is drawn again.
    for said in ("starting torch", " of 6"):
        assert said in terminal
    done = subprocess.run(
        [sys.executable, "-c", script, *line], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (out, "")
