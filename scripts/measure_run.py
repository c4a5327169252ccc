"""How a long run behaves: its peak memory on the host, and the time it takes besides the model's.

    python scripts/measure_run.py --pictures 100 1000 10000

Each run is a process of its own: `klein generate` on a file of that many prompts, no two alike.
Time outside the model is all the time of the process, its start and the writing included, less
what `-v` says was spent encoding prompts, denoising and decoding. Ends in one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "star")
SIZES = ("small", "large")
PLACES = ("above", "below", "to the left of", "to the right of")
MODEL_PHASES = ("encode", "denoise", "decode")
LAUNCH = "import sys; from klein_cli.cli.app import main; sys.exit(main())"


def prompts() -> Iterator[str]:
    """16,384 prompts that differ."""
    things = [" ".join(words) for words in itertools.product(SIZES, COLOURS, SHAPES)]
    for ground, place, first, second in itertools.product(COLOURS[:1], PLACES, things, things):
        yield f"a {first} {place} a {second} on a {ground} background"


def measured(pictures: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """One run of that many pictures: seconds, and the peak of its resident memory in MB."""
    file = folder / "prompts.txt"
    file.write_text("\n".join(itertools.islice(prompts(), pictures)) + "\n")
    command = ["generate", "--prompts-file", str(file), "-o", f"{folder}/out/", "-s", "1", "-v"]
    command += ["-m", options.model, "--size", options.size, *options.more]
    log = folder / "log.txt"
    started = time.perf_counter()
    with open(log, "w") as said, open(os.devnull, "w") as nowhere:
        launch = [sys.executable, "-c", LAUNCH, *command]
        child = subprocess.Popen(launch, stdout=nowhere, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    text = log.read_text()
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(text)
    model = sum(
        float(re.search(rf"^ *{phase} +([\d.]+) s$", text, re.MULTILINE)[1])  # type: ignore[index]
        for phase in MODEL_PHASES
    )
    made = len(list((folder / "out").glob("*.png")))
    return {
        "pictures": made,
        "seconds": round(seconds, 1),
        "model seconds": round(model, 1),
        "outside the model": round(1 - model / seconds, 4),
        "peak MB": round(usage.ru_maxrss / 1024, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--size", default="128x128")
    parser.add_argument("more", nargs="*", help="more options for klein generate, after --")
    options = parser.parse_args()
    rows = []
    for pictures in options.pictures:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(pictures, options, Path(folder)))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    print(json.dumps({"model": options.model, "size": options.size, "runs": rows}))


if __name__ == "__main__":
    main()
