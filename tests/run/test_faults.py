"""Faults, for real: a full disk, a disk that turns read-only, too little memory, a second run."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from klein_cli.cli.app import main
from klein_cli.output.reading import is_torn
from klein_cli.prompts.files import read_rows
from klein_cli.prompts.rows import Row
from klein_cli.run.resume.manifest import opened

pytestmark = pytest.mark.process

QUICK = ("--size", "64x64", "--steps", "1", "--device", "cpu", "-s", "5")


@pytest.fixture(autouse=True)
def _prompts(empty_folder: Path) -> None:
    Path("p.txt").write_text("".join(f"a cat, number {number}\n" for number in range(12)))


@pytest.fixture
def klein(klein: Any, random_snapshot: str) -> Any:
    """Run `klein generate` on a small random model -> (exit code, stdout, stderr)."""
    return partial(klein, "generate", "-m", random_snapshot, *QUICK)


class Disk:
    """A file system of its own, as small as wanted; mounting one takes privileges."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, options: str) -> None:
        command = f"mount -t tmpfs -o {options} tmpfs '{self.folder.absolute()}' 2>/dev/null"
        if os.system(command):
            pytest.skip("cannot mount a file system here")

    def remount(self, options: str) -> None:
        command = ["mount", "-o", f"remount,{options}", str(self.folder.absolute())]
        subprocess.run(command, check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "d"
    folder.mkdir()
    yield Disk(folder)
    os.system(f"umount '{folder}' 2>/dev/null")


def pictures(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.png")}


def names(folder: str) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_full_disk_stops_the_run_with_what_is_done_intact(klein: Any, disk: Disk) -> None:
    disk.mount("size=100k")
    code, out, err = klein("--prompts-file", "p.txt", "-o", "d/")
    assert code == 1
    made = out.split()
    assert 0 < len(made) < 12
    *_, what, todo, tally = err.splitlines()
    assert what.startswith("error: cannot write d/")
    assert what.endswith("No space left on device")
    assert todo == "hint: fix that, then give the same command with --resume"
    assert tally == f"{len(made)} of 12 images made, 0 failed"
    assert names("d") == [*sorted(Path(path).name for path in made), "manifest.jsonl"]
    assert not any(is_torn(Path(path)) for path in made)
    for line in Path("d/manifest.jsonl").read_text().splitlines():
        json.loads(line)
    before = pictures("d")
    disk.remount("size=10m")
    assert klein("--prompts-file", "p.txt", "-o", "d/", "--resume")[0] == 0
    assert klein("--prompts-file", "p.txt", "-o", "whole/")[0] == 0
    assert pictures("d") == pictures("whole")
    assert before.items() <= pictures("d").items()


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Nobody may make a file in there, not even root."""
    if os.geteuid():
        os.chmod(folder, 0o500)
    elif os.system(f"chattr +i '{folder}' 2>/dev/null"):
        pytest.skip("cannot make a folder immutable here")
    try:
        yield
    finally:
        if os.geteuid():
            os.chmod(folder, 0o700)
        else:
            os.system(f"chattr -i '{folder}'")


def test_a_folder_that_is_locked_meanwhile_stops_the_run(small_snapshot: Path) -> None:
    """Rather than that a night's images are drawn and thrown away one by one."""
    command = ["generate", "a cat", "-m", str(small_snapshot), *QUICK, "-n", "3000", "-o", "d/"]
    script = "import sys; from klein_cli.cli.app import main; sys.exit(main())"
    running = subprocess.Popen(
        [sys.executable, "-c", script, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    running.stdout.readline()
    with locked("d"):
        _, err = running.communicate(timeout=120)
        assert running.returncode == 1
        assert re.search(r"^error: cannot write d/.*(not permitted|denied)$", err, re.MULTILINE)
        assert re.search(r"^\d+ of 3000 images made, 0 failed$", err, re.MULTILINE)
        assert not any(is_torn(path) for path in Path("d").glob("*.png"))
        # What was being written cannot be taken away again, until the run is taken up.
        others = [name for name in names("d") if not name.endswith(".png")]
        assert [name for name in others if not name.startswith(".klein-run-")] == ["manifest.jsonl"]


def test_a_read_only_folder_is_refused_before_the_model_loads(klein: Any, disk: Disk) -> None:
    disk.mount("size=1m,ro")
    code, out, err = klein("--prompts-file", "p.txt", "-o", "d/", "-v")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: cannot write in the folder d: Read-only file system",
        "hint: give -o a folder you can write in",
    ]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users on this system")
def test_a_folder_that_the_user_may_not_write_in_is_refused(tmp_path: Path) -> None:
    """As somebody without privileges, since permissions do not stop root."""
    from klein_cli.errors import UsageError

    Path("mine").mkdir(mode=0o555)
    child = os.fork()
    if not child:
        code = 70
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            try:
                with opened(Path("mine")):
                    code = 1
            except UsageError as error:
                code = 0 if "Permission denied" in error.message else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert names("mine") == []


def test_a_second_run_in_the_folder_is_refused_before_the_model_loads(klein: Any) -> None:
    with opened(Path("d")):
        code, out, err = klein("--prompts-file", "p.txt", "-o", "d/", "-v")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: another run is writing into d",
        "hint: wait for it, or give another folder",
    ]


def limited(megabytes: int, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """`klein` in a process that may take so much more memory than it has once torch is there."""
    script = (
        "import resource, sys, klein_cli.pipeline\n"
        "from klein_cli.cli.app import main\n"
        "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (taken + {megabytes} * 1_000_000,) * 2)\n"
        "sys.exit(main())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        # Otherwise threads set 64 MB aside each, and what was freed is kept in pieces.
        env=os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"},
    )


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's limits")
def test_a_row_that_no_memory_is_enough_for_is_set_aside(small_snapshot: Path) -> None:
    rows = [{"prompt": "a cat"}, {"prompt": "a dog", "width": 768, "height": 768}]
    lines = [json.dumps(row) + "\n" for row in (*rows, {"prompt": "a cow"})]
    Path("rows.jsonl").write_text("".join(lines))
    command = ["generate", "--prompts-file", "rows.jsonl", "-m", str(small_snapshot), *QUICK]
    done = limited(150, [*command, "-o", "d/"])
    assert done.returncode == 1, done.stderr
    assert done.stdout.split() == ["d/0001-a-cat-5.png", "d/0003-a-cow-7.png"]
    assert "Traceback" not in done.stderr
    stepped, what, hint, tally = done.stderr.splitlines()
    assert stepped.startswith("warning: an image of 768x768 did not fit into the memory of cpu")
    assert what.endswith("not even decoded in tiles")
    assert hint.startswith("hint: --size ")
    assert tally == "2 of 3 images made, 1 failed: see d/failed.jsonl"
    (row,) = read_rows("d/failed.jsonl", io.BytesIO())
    assert isinstance(row, Row)
    assert (row.prompt, row.seed, row.width, row.output) == ("a dog", 6, 768, "0002-a-dog-6.png")
    # With all the memory there is, the row is made, under the name it should have had.
    again = ["generate", "--prompts-file", "d/failed.jsonl", "-m", str(small_snapshot), *QUICK]
    assert main([*again, "-o", "d/", "-q"]) == 0
    made = [f"000{n}-a-{animal}-{n + 4}.png" for n, animal in enumerate(("cat", "dog", "cow"), 1)]
    assert names("d") == [*made, "manifest.jsonl"]
