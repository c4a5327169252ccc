"""Make tests/fixtures/killed: the output folder of two runs that were killed before their end.

    python scripts/make_killed_folder.py CHECKOUT FOLDER

The klein of CHECKOUT draws the prompts that stand below twice into FOLDER/run, with two seeds. The
first picture of each run fails, because its file would be too large, and stands in failed.jsonl.
The first run is killed in its middle. The second leaves its recipes out of its pictures, and is
killed when a picture is whole and the manifest does not say so yet. The committed folder is of
commit 41edafe and stays as it is: the tests see that such a folder can be resumed for good.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "every shape in every colour, finely patterned", "width": 384, "height": 384},
    {"prompt": "a yellow square on a white background", "seed": 77, "output": "square.png"},
    {"prompt": "a red circle on a white background"},
    {"prompt": "a green triangle on a black background", "n": 2},
    {"prompt": "a blue star on a grey background", "width": 144},
    {"prompt": "a purple circle on a black background"},
)
OPTIONS = ("-m", "tiny", "--size", "128x128", "--steps", "1", "--device", "cpu")
SEEDS = (5, 100)
LARGEST_FILE = 14_000
MADE_BEFORE_THE_KILL = 3
ATTEMPTS = 40


def begin(checkout: Path, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start a run into folder/run that cannot write files of more than LARGEST_FILE bytes."""
    command = [sys.executable, "-m", "klein_cli", "generate", "--prompts-file", "prompts.jsonl"]
    return subprocess.Popen(
        [*command, "-o", "run/", *OPTIONS, "-q", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checkout.absolute())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE)),
    )


def kill_when(running: subprocess.Popen[bytes], is_time: Callable[[], bool]) -> None:
    """Kill -9 as soon as it is time. Raises SystemExit if the run ends before."""
    while not is_time():
        if running.poll() is not None:
            raise SystemExit(f"a run ended with exit code {running.returncode} before its kill")
    running.kill()
    running.wait()


def entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The whole lines of that kind in the manifest."""
    path = folder / "run" / "manifest.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [entry for entry in found if entry["kind"] == kind]


def pictures(folder: Path) -> set[str]:
    """The files of pictures in the folder."""
    return {path.name for path in (folder / "run").glob("*.png")}


def draw(checkout: Path, folder: Path) -> None:
    """Both runs, in a new folder."""
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "prompts.jsonl").write_text(rows, encoding="utf-8")
    running = begin(checkout, folder, "-s", str(SEEDS[0]))
    kill_when(running, lambda: len(entries(folder, "picture")) >= MADE_BEFORE_THE_KILL)
    enough = len(pictures(folder)) + MADE_BEFORE_THE_KILL
    running = begin(checkout, folder, "-s", str(SEEDS[1]), "--no-metadata")
    kill_when(running, lambda: len(pictures(folder)) >= enough)


def is_as_wanted(folder: Path) -> bool:
    """Whether the kills fell where they should."""
    recorded = {entry["file"] for entry in entries(folder, "picture")}
    failed = (folder / "run" / "failed.jsonl").read_bytes().splitlines()
    begun = {(entry["run"], entry["index"]) for entry in entries(folder, "begun")}
    planned = {(e["run"], e["index"]): e["file"] for e in entries(folder, "planned")}
    unrecorded = pictures(folder) - recorded
    return (
        len(failed) == len(SEEDS)
        and len(unrecorded) == 1
        and unrecorded <= {planned[which] for which in begun}
        and len(recorded) == 2 * MADE_BEFORE_THE_KILL - 1
    )


def main() -> None:
    """Read the command line, and try until the kills fall where they should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    for _ in range(ATTEMPTS):
        with tempfile.TemporaryDirectory() as place:
            draw(options.checkout, Path(place))
            if is_as_wanted(Path(place)):
                shutil.copytree(place, options.folder, dirs_exist_ok=True)
                print(f"{options.folder}: {len(pictures(options.folder))} pictures")
                return
    raise SystemExit(f"the kills fell elsewhere {ATTEMPTS} times")


if __name__ == "__main__":
    main()
