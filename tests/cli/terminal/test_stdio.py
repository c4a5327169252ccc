"""Standard streams that are closed, full, left by their reader, or of an old encoding."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

DRAW = ("generate", "a cat", "-m", "tiny", "--size", "128x128", "--steps", "1", "-s", "1")
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`line` in a shell, `klein` in it being this one."""
    klein = f'klein() {{ "{sys.executable}" -m klein_cli "$@"; }}; '
    return subprocess.run(
        ["bash", "-c", klein + line],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def words(*arguments: str) -> str:
    return " ".join(f"'{argument}'" for argument in arguments)


@pytest.mark.parametrize("closed", ["0<&-", ">&-", "2>&-", "0<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_not_missed(closed: str, tmp_path: Path) -> None:
    """As a daemon or a scheduler may leave them."""
    done = shell(f"klein {words(*DRAW, '-o', str(tmp_path / 'cat.png'))} {closed}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "cat.png").read_bytes().startswith(b"\x89PNG")


def test_a_prompt_from_a_closed_input_is_an_empty_one() -> None:
    done = shell("klein generate - -m tiny 0<&-")
    assert done.returncode == 2
    assert "standard input holds no prompt" in done.stderr


@FULL
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command",
    ["models", "--help", "--version", "info --help", "generate 'a cat' -m tiny --dry-run"],
)
def test_an_output_that_is_full_is_an_error_and_not_a_bug(command: str, unbuffered: str) -> None:
    done = shell(f"klein {command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "error: cannot write to standard output: No space left on device",
        "hint: send it elsewhere",
    ]
    assert "Traceback" not in done.stderr


@FULL
def test_a_full_output_ends_a_run_and_keeps_its_pictures(tmp_path: Path) -> None:
    done = shell(f"klein {words(*DRAW, '-n', '3', '-o', f'{tmp_path}/out/')} > /dev/full")
    assert done.returncode == 1
    assert "cannot write to standard output" in done.stderr
    assert list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reader_that_leaves_is_told_how_far_the_run_came(more: list[str], tmp_path: Path) -> None:
    many = words(*DRAW, "-n", "40", "-o", f"{tmp_path}/out/", *more)
    done = shell(f"klein {many} | head -n 1; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: standard output was closed, so the run ends: ")
    assert error.endswith(" of 40 images made; the same command with --resume makes the rest")
    assert hint.startswith("hint: send it to a file")
    made = len(list((tmp_path / "out").glob("*.png")))
    assert 1 <= made < 40
    assert f": {made} of 40 " in error


@FULL
def test_words_that_nobody_can_keep_do_not_end_the_work(tmp_path: Path) -> None:
    """A log on a full disk: the run goes on, and its exit code is its own."""
    out = tmp_path / "out"
    done = shell(f"klein {words(*DRAW[:-2], '-n', '2', '-o', f'{out}/')} 2> /dev/full")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    assert shell("klein generate a b 2> /dev/full").returncode == 2


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_interrupt_that_ends_the_reader_too(more: list[str], tmp_path: Path) -> None:
    """Ctrl-C on `klein ... | tee log` is sent to both."""
    out, err, code = tmp_path / "out", tmp_path / "err", tmp_path / "code"
    draw = words(sys.executable, "-m", "klein_cli", *DRAW, "-n", "3000", "-o", f"{out}/", *more)
    line = f"trap : INT; {draw} 2> '{err}' | cat > /dev/null; echo ${{PIPESTATUS[0]}} > '{code}'"
    child = subprocess.Popen(["bash", "-c", line], start_new_session=True)
    while not list(out.glob("*.png")) and child.poll() is None:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGINT)
    child.wait(timeout=60)
    made = len(list(out.glob("*.png")))
    assert code.read_text() == "130\n"
    assert err.read_text().splitlines()[-1] == (
        f"interrupted: {made} of 3000 images made; the same command with --resume makes the rest"
    )
    kinds = [json.loads(line)["kind"] for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert kinds.count("picture") == made


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_escaped(encoding: str, tmp_path: Path) -> None:
    line = f"cd '{tmp_path}' && klein {words(*DRAW)} -o 漢.png && klein info 漢.png"
    done = shell(line, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("\\u6f22.png\n")
    assert (tmp_path / "漢.png").is_file()


def test_a_path_that_is_no_utf8_is_printed_as_it_is(tmp_path: Path) -> None:
    klein = [sys.executable, "-m", "klein_cli", *DRAW, "-o", os.fsencode(tmp_path) + b"/\xe9.png"]
    done = subprocess.run(klein, capture_output=True, check=True)
    assert done.stdout.endswith(b"/\xe9.png\n")


def test_an_interrupt_while_klein_is_imported_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    done = shell("klein --help", PYTHONPATH=f"{tmp_path}{os.pathsep}{Path.cwd()}")
    assert (done.returncode, done.stderr) == (130, "")
