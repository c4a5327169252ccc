"""Break one line at a time and see that a test fails: scripts/mutations.toml -> docs/mutations.md.

    python scripts/mutate.py                all of them, a quarter of an hour on two cores
    python scripts/mutate.py --only mask    those of one part, nothing written

Works in temporary copies of the tree. Exit code 1 when a mutation survives.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "scripts" / "mutations.toml"
REPORT = ROOT / "docs" / "mutations.md"
NEEDED = ("klein_cli", "configs", "scripts", "tests", "pyproject.toml")
SURVIVED = "**survived**"
HEAD = """# Mutations

Each row is one line of the numerics, broken on purpose, and the first test that noticed. Written
by `python scripts/mutate.py`; the mutations are in `scripts/mutations.toml`, and a test keeps that
list in step with the code.

"""


@dataclass(frozen=True, slots=True)
class Mutation:
    """`old` in `file`, a path from the root, becomes `new`; `tests` should notice."""

    part: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, source: str) -> str:
        """The mutated source. Raises ValueError unless `old` stands there exactly once."""
        if source.count(self.old) != 1:
            raise ValueError(f"{self.file} holds {self.old!r} {source.count(self.old)} times")
        return source.replace(self.old, self.new)


def mutations() -> list[Mutation]:
    """The table, in its order."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    tests = table["tests"]
    return [
        Mutation(tests=tuple(tests[entry.pop("by", entry["file"])]), **entry)
        for entry in table["mutation"]
    ]


def first_failure(tree: Path, tests: tuple[str, ...]) -> str | None:
    """Run tests in a copy of the tree until one fails; its name, or None when all pass."""
    threads = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", *tests],
        cwd=tree,
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if not found:
        raise RuntimeError(f"pytest said nothing that can be read:\n{done.stdout}{done.stderr}")
    return found[1]


def try_out(mutation: Mutation, trees: Queue[Path]) -> str | None:
    """Apply a mutation to a free copy, run its tests, and mend the copy."""
    tree = trees.get()
    path = tree / mutation.file
    source = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutation.applied(source), encoding="utf-8")
        return first_failure(tree, mutation.tests)
    finally:
        path.write_text(source, encoding="utf-8")
        trees.put(tree)


def run(chosen: list[Mutation], jobs: int) -> list[str | None]:
    """What caught each mutation, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        trees: Queue[Path] = Queue()
        for number in range(jobs):
            trees.put(_copy(Path(folder) / str(number)))
        tests = tuple(sorted({test for mutation in chosen for test in mutation.tests}))
        tree = trees.get()
        if wrong := first_failure(tree, tests):
            raise SystemExit(f"nothing is mutated yet, and {wrong} fails")
        trees.put(tree)
        with ThreadPoolExecutor(jobs) as pool:
            caught = []
            for mutation, by in zip(
                chosen, pool.map(lambda one: try_out(one, trees), chosen), strict=True
            ):
                print(f"{mutation.part}: {mutation.what}: {by or 'SURVIVED'}", flush=True)
                caught.append(by)
            return caught


def report(chosen: list[Mutation], caught: list[str | None]) -> str:
    """The table as Markdown."""
    lines = ["| part | mutation | in | caught by |", "| --- | --- | --- | --- |"]
    for mutation, by in zip(chosen, caught, strict=True):
        test = f"`{by.removeprefix('tests/')}`" if by else SURVIVED
        lines.append(
            f"| {mutation.part} | {mutation.what} | `{Path(mutation.file).name}` | {test} |"
        )
    survivors = caught.count(None)
    told = f"{len(chosen)} mutations, {len(chosen) - survivors} caught."
    return HEAD + told + "\n\n" + "\n".join(lines) + "\n"


def _copy(tree: Path) -> Path:
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tree / name)
    return tree


def main() -> int:
    """Read the command line, run, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="WORD", help="parts, files or mutations with this word")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    chosen = mutations()
    if options.only:
        chosen = [m for m in chosen if options.only in f"{m.part} {m.what} {m.file}"]
    caught = run(chosen, options.jobs)
    if not options.only:
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(report(chosen, caught), encoding="utf-8")
    return 1 if None in caught else 0


if __name__ == "__main__":
    sys.exit(main())
