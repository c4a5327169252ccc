"""Run a folder of cases as their users would meet them, and say which of them klein answers ill.

    python scripts/try_cases.py CASES [NAME ...]

Each folder in CASES holds `cmd`, a bash script that is run in an empty folder with KLEIN (the
program) and CASE (its folder) set and echoes `rc=` and the exit code behind each command, and
`expected`, in words. What a machine can judge is judged here: a traceback, Python's own words, an
exit code that klein does not have, a command that does not end. The rest is printed side by side
for a reader.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SECONDS = 300
_CODES = {0, 1, 2, 3, 4, 129, 130, 143}
_PYTHONS_WORDS = re.compile(r"Traceback \(most recent|\[Errno \d|^\w*(?:Error|Exception): ", re.M)


def main() -> int:
    """Run them; 1 if any of them is answered ill."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", type=Path)
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    folders = sorted(path.parent for path in asked.cases.glob("*/cmd"))
    wrong = 0
    for folder in folders:
        if asked.names and folder.name not in asked.names:
            continue
        said = run(folder)
        faults = list(judged(said))
        wrong += bool(faults)
        print(f"== {folder.name}: {'; '.join(faults) or 'no fault that a machine sees'}")
        print(said.rstrip())
        print(f"-- expected\n{(folder / 'expected').read_text(encoding='utf-8').rstrip()}\n")
    print(f"{wrong} of {len(folders)} are answered ill")
    return 1 if wrong else 0


def run(folder: Path) -> str:
    """All that a case's script prints, and whether it ended."""
    with tempfile.TemporaryDirectory() as empty:
        program = Path(empty, "bin", "klein")
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m klein_cli "$@"\n')
        program.chmod(0o755)
        ground = Path(empty, "ground")
        ground.mkdir()
        environment = {**os.environ, "KLEIN": str(program), "CASE": str(folder.resolve())}
        command = ["bash", str((folder / "cmd").resolve())]
        try:
            done = subprocess.run(
                command,
                cwd=ground,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            return f"{(late.stdout or b'').decode(errors='replace')}\nno end in {_SECONDS} s"
    return done.stdout.decode(errors="replace")


def judged(said: str) -> Iterator[str]:
    """What is wrong with it, as far as that can be seen without understanding."""
    if _PYTHONS_WORDS.search(said):
        yield "Python's own words"
    codes = {int(code) for code in re.findall(r"\brc=(\d+)", said)}
    if codes - _CODES:
        yield f"exit codes {sorted(codes - _CODES)}"
    if "no end in" in said:
        yield "it does not end"


if __name__ == "__main__":
    sys.exit(main())
