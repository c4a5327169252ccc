"""Run two checkouts of klein in this environment and compare, bit by bit, what comes out of them.

    python scripts/compare_checkouts.py OLD NEW                      on the CPU: about ten minutes
    python scripts/compare_checkouts.py OLD NEW --only 'base.*eager' a part, by a regular expression
    python scripts/compare_checkouts.py OLD NEW --device cuda --full-size FOLDER

The library (`compared_pictures.py`): embeddings, latents after each step and pixels. The command
line (`compared_scenarios.py`): exit codes, files, pixels, records, manifests and events; texts for
humans may differ. FOLDER holds a snapshot by `make_snapshot.py --size 4b`. Exit code 1 where
anything differs, and where both sides fail.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from compared_commands import Scenario, Side, observe
from compared_pictures import Work, library_work
from compared_scenarios import scenarios
from probe_checkout import array_file

PROBE = Path(__file__).with_name("probe_checkout.py")
MISSING = "there is none"
SHOWN = 60
"""Differences that the table lists; --out has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """`what` of a batch or a scenario is not the same on both sides."""

    name: str
    what: str
    how: str


@dataclass(slots=True)
class Tally:
    """What was compared so far."""

    compared: int
    differences: list[Difference]

    def add(self, name: str, what: str, how: str | None) -> None:
        """One comparison; `how` says how the sides differ, None that they do not."""
        self.compared += 1
        if how is not None:
            self.differences.append(Difference(name=name, what=what, how=how))


def main() -> int:
    """Read the command line, compare, and tell."""
    options = _options()
    started = time.perf_counter()
    place = tempfile.TemporaryDirectory() if options.keep is None else nullcontext(options.keep)
    with place as folder:
        tally = compare(options, Path(folder).absolute())
    seconds = time.perf_counter() - started
    print("\n".join(report(tally, seconds)))
    if options.out is not None:
        facts = {"compared": tally.compared, "seconds": round(seconds)}
        differences = [asdict(difference) for difference in tally.differences]
        options.out.write_text(json.dumps(facts | {"differences": differences}, indent=1) + "\n")
    return 1 if tally.differences or not tally.compared else 0


def compare(options: argparse.Namespace, folder: Path) -> Tally:
    """Everything whose name --only fits."""
    tally = Tally(0, [])
    sides = [
        Side(checkout=checkout.absolute(), folder=folder / name, device=options.device)
        for name, checkout in (("old", options.old), ("new", options.new))
    ]
    wanted = re.compile(options.only).search
    models = _models(sides[0], folder / "models", options)
    for group, work in library_work(options.device, models, "full" in models).items():
        compare_library(group, _only(work, wanted), sides, tally)
    compare_commands({k: v for k, v in scenarios(models).items() if wanted(k)}, sides, tally)
    return tally


def compare_library(group: str, work: Work, sides: list[Side], tally: Tally) -> None:
    """Have a group drawn by both sides: at once on a CPU, one after the other on a GPU."""
    if not work:
        return
    print(f"library, {group}: {len(work)} pipelines", flush=True)
    with ThreadPoolExecutor(len(sides) if sides[0].device == "cpu" else 1) as pool:
        old, new = pool.map(lambda side: probe(side, group, work), sides)
    for pipeline in work:
        for batch in pipeline["batches"]:
            compare_batch(batch, old, new, tally)


def probe(side: Side, group: str, work: Work) -> tuple[Path, dict[str, Any]]:
    """The folder of arrays, and the results by name as `probe_checkout.py` writes them."""
    folder = side.folder / group.replace(" ", "-")
    folder.mkdir(parents=True)
    (folder / "work.json").write_text(json.dumps(work))
    environment = side.environment()
    if group == "triton":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, PROBE, folder / "work.json", folder]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{side.checkout} could not be probed:\n{done.stderr[-3000:]}")
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return folder, {result["name"]: result for result in map(json.loads, lines)}


def compare_batch(
    batch: dict[str, Any],
    old: tuple[Path, dict[str, Any]],
    new: tuple[Path, dict[str, Any]],
    tally: Tally,
) -> None:
    """Array by array, and whether both were drawn to their end."""
    name = batch["name"]
    before, after = old[1][name], new[1][name]
    for side, result in (("old", before), ("new", after)):
        error = result["error"]
        if batch["no_pixels"] and any(what.startswith("latents") for what in result["arrays"]):
            error = None
        tally.add(name, f"drawn by {side}", error)
    names = list(dict.fromkeys([*before["arrays"], *after["arrays"]]))
    for what in names:
        facts = before["arrays"].get(what), after["arrays"].get(what)
        how = None
        if facts[0] != facts[1]:
            how = _distance(*(side[0] / array_file(name) for side in (old, new)), what)
        tally.add(name, what, how)


def compare_commands(wanted: dict[str, Scenario], sides: list[Side], tally: Tally) -> None:
    """Have the scenarios run by both sides at once, and compare all that was observed."""
    for name, scenario in wanted.items():
        print(name, flush=True)
        with ThreadPoolExecutor(len(sides)) as pool:
            old, new = pool.map(lambda side, name=name, s=scenario: observe(name, s, side), sides)
        for what in dict.fromkeys([*old, *new]):
            before, after = old.get(what, MISSING), new.get(what, MISSING)
            same = json.dumps(before) == json.dumps(after)
            tally.add(name, what, None if same else first_difference(before, after))


def first_difference(old: Any, new: Any, at: str = "") -> str:
    """Where two values from JSON part first, and what stands there."""
    if isinstance(old, dict) and isinstance(new, dict) and list(old) == list(new):
        key = next(key for key in old if old[key] != new[key])
        return first_difference(old[key], new[key], f"{at}.{key}")
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        index = next(i for i, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1])
        return first_difference(old[index], new[index], f"{at}[{index}]")
    texts = [json.dumps(value, ensure_ascii=False) for value in (old, new)]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    start = sum(1 for _ in same)
    cut = [text[max(0, start - 20) :][:80] for text in texts]
    return f"{at.lstrip('.')} {cut[0]} -> {cut[1]}".strip()


def report(tally: Tally, seconds: float) -> Iterator[str]:
    """The table of differences, and the line of totals."""
    for difference in tally.differences[:SHOWN]:
        yield f"{difference.name} | {difference.what} | {difference.how}"
    if (more := len(tally.differences) - SHOWN) > 0:
        yield f"... and {more} more"
    count = len(tally.differences)
    found = "no difference" if not count else f"{count} difference{'s' * (count > 1)}"
    yield f"{tally.compared} comparisons, {found}, {seconds:.0f} s"


def _distance(old: Path, new: Path, what: str) -> str:
    with np.load(old) as before, np.load(new) as after:
        if what not in before or what not in after:
            return f"only in {'new' if what in after else 'old'}"
        a, b = before[what], after[what]
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return f"{a.dtype}{list(a.shape)} -> {b.dtype}{list(b.shape)}"
    apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return f"{np.count_nonzero(apart):,} of {apart.size:,} values, at most {apart.max():.3g}"


def _only(work: Work, wanted: Callable[[str], Any]) -> Work:
    kept = [
        {**pipeline, "batches": [batch for batch in pipeline["batches"] if wanted(batch["name"])]}
        for pipeline in work
    ]
    return [pipeline for pipeline in kept if pipeline["batches"]]


def _models(side: Side, folder: Path, options: argparse.Namespace) -> dict[str, str]:
    """Random snapshots, written by the old side for both: {name: folder}."""
    size = "small" if options.device == "cpu" else "medium"
    found = {}
    for name, more in (("distilled", []), ("base", ["--base"])):
        command = [sys.executable, side.checkout / "scripts" / "make_snapshot.py", folder / name]
        subprocess.run(
            [*command, "--size", size, *more],
            env=side.environment(),
            stdout=subprocess.DEVNULL,
            check=True,
        )
        found[name] = str(folder / name)
    if options.full_size is not None:
        found["full"] = str(options.full_size.absolute())
        found["full base"] = str(_as_base(options.full_size.absolute(), folder / "full-base"))
    return found


def _as_base(snapshot: Path, folder: Path) -> Path:
    """The same weights as a model that is not distilled."""
    folder.mkdir()
    for path in snapshot.iterdir():
        (folder / path.name).symlink_to(path)
    index = folder / "model_index.json"
    table = json.loads(index.read_text()) | {"is_distilled": False}
    index.unlink()
    index.write_text(json.dumps(table))
    return folder


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", metavar="PATTERN", default="", help="a regular expression")
    parser.add_argument("--full-size", metavar="FOLDER", type=Path, help="a snapshot, with cuda")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="where all that is drawn stays")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the result as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
