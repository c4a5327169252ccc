"""Several workers beside one: pictures a second of each, and whether their files are the same.

    python scripts/make_snapshot.py FOLDER --size 4b
    python scripts/measure_workers.py --model FOLDER --size 1024x1024 --workers 1 2 1 2

Each is a process of its own: `klein generate --workers N` on the same prompts and seeds. The rate
is that of the pictures after the first four of each worker, so that loading and warming up do not
count; a number of workers given more than once has the median of its rates. Files written before,
a fresh snapshot's say, are on the disk by then: klein waits for the disk with every picture, and
would wait for them. Ends in one line of JSON, and with 1 when a file differs by a byte.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from measure_run import LAUNCH, prompts

WARM_UP = 4


def measured(workers: int, options: argparse.Namespace, out: Path) -> dict[str, float]:
    """One run: pictures a second once it runs, and the seconds until its first picture."""
    file = out.with_suffix(".txt")
    file.write_text("\n".join(islice(prompts(), options.pictures)) + "\n")
    command = ["generate", "--prompts-file", str(file), "-o", f"{out}/", "-s", "1"]
    command += ["-m", options.model, "--size", options.size, "--workers", str(workers), "--json"]
    os.sync()
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *command, *options.more], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    times = [time.perf_counter() for line in child.stdout if json.loads(line)["event"] == "picture"]
    if child.wait() or len(times) != options.pictures:
        raise SystemExit(f"{len(times)} of {options.pictures} pictures were made")
    counted = times[WARM_UP * workers :]
    if len(counted) < 2:
        raise SystemExit(f"--pictures {options.pictures} are too few for {workers} workers")
    return {
        "workers": workers,
        "pictures a second": round((len(counted) - 1) / (counted[-1] - counted[0]), 3),
        "seconds to the first": round(times[0] - started, 1),
        "seconds": round(times[-1] - started, 1),
    }


def rate(rows: list[dict[str, float]], workers: int) -> float:
    """The median of the pictures a second of all runs of so many workers."""
    return statistics.median(row["pictures a second"] for row in rows if row["workers"] == workers)


def differing(one: Path, other: Path) -> list[str]:
    """Names of pictures that are not byte for byte the same in both folders."""
    names = {path.name for folder in (one, other) for path in folder.glob("*.png")}
    return sorted(
        name
        for name in names
        if not all((folder / name).is_file() for folder in (one, other))
        or (one / name).read_bytes() != (other / name).read_bytes()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--pictures", type=int, default=120)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("more", nargs="*", help="more options for klein generate, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = []
        folders = [folder / str(number) for number, _ in enumerate(options.workers)]
        for workers, out in zip(options.workers, folders, strict=True):
            rows.append(measured(workers, options, out))
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        first, *others = folders
        different = sorted({name for other in others for name in differing(first, other)})
    rates = [rate(rows, workers) for workers in (options.workers[0], options.workers[-1])]
    ratio = rates[1] / rates[0]
    print(
        f"{options.workers[-1]} workers make {ratio:.2f} times the pictures of {options.workers[0]}"
    )
    print(
        f"{len(different)} files differ" if different else "the files are the same, byte for byte"
    )
    print(json.dumps({"runs": rows, "ratio": round(ratio, 3), "different": different}))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
