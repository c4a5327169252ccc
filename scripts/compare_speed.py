"""Time two checkouts of klein beside each other, in turn, on one machine.

    python scripts/compare_speed.py OLD NEW --model FOLDER [--device cuda] [--rounds 3]

Warm: the median of drawing one image after another in a process that has loaded the model. Cold:
`klein generate` from the shell to the file. Throughput: images a second of one run of many, without
its start. Each side takes turns, round by round; the table has the medians and their ratio.
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
from pathlib import Path
from typing import Any

WARM = """
import json, sys, time
from klein_cli.pipeline import Pipeline, choose
try:
    from klein_cli.checkpoints.resolve import resolve
    from klein_cli.settings import Settings
except ImportError:
    from klein_cli.recipe import Settings
    from klein_cli.snapshot import resolve
from klein_cli.recipe import Recipe
model, device, quantize, side, count = sys.argv[1:]
snapshot = resolve(model)
settings = choose(Settings(device=device, quantize=quantize), snapshot.preset)
pipe = Pipeline.load(snapshot, settings)
spent = []
for seed in range(int(count) + 3):
    recipe = Recipe(prompt=f"a red fox, number {seed}", seed=seed, width=int(side),
        height=int(side), steps=4, guidance=1.0, model=snapshot.preset.name)
    started = time.perf_counter()
    pipe.render([recipe])
    spent.append(time.perf_counter() - started)
print(json.dumps(spent[3:]))
"""


def main() -> None:
    """Read the command line, time, and print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", type=int, nargs="*", default=[1024, 512])
    parser.add_argument("--many", type=int, default=40, help="images of a throughput run")
    options = parser.parse_args()
    sides = {"old": options.old.resolve(), "new": options.new.resolve()}
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(options.rounds):
        for name, checkout in sides.items():
            for what, seconds in measured(checkout, options).items():
                found.setdefault(what, {"old": [], "new": []})[name].append(seconds)
    print(f"{'':32} {'old':>9} {'new':>9}   new / old")
    for what, both in found.items():
        old, new = (statistics.median(both[side]) for side in sides)
        print(f"{what:32} {old:9.4f} {new:9.4f}   {new / old:.3f}")
    print(json.dumps(found))


def measured(checkout: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds by what they are of, of one round of one side."""
    seconds: dict[str, float] = {}
    for quantize in ("none", "fp8") if options.device == "cuda" else ("none",):
        for side in options.sides:
            given = [options.model, options.device, quantize, str(side), "10"]
            line = run(checkout, "-c", WARM, *given).splitlines()[-1]
            seconds[f"warm {side} {quantize}"] = statistics.median(json.loads(line))
    with tempfile.TemporaryDirectory() as folder:
        side = f"{options.sides[0]}x{options.sides[0]}"
        command = ["-m", "klein_cli", "generate", "a red fox", "-m", options.model, "-s", "1"]
        command += ["--device", options.device, "--size", side, "-o", f"{folder}/"]
        for quantize in ("none", "fp8") if options.device == "cuda" else ("none",):
            started = time.perf_counter()
            run(checkout, *command, "-q", "--quantize", quantize)
            seconds[f"cold {side} {quantize}"] = time.perf_counter() - started
        events = run(checkout, *command, "--json", "-n", str(options.many))
        seconds[f"an image of {options.many} at {side}"] = an_image(events)
    return seconds


def an_image(events: str) -> float:
    """Seconds an image, by what each says of itself, without the first, which loads."""
    images: list[dict[str, Any]] = [
        event for line in events.splitlines() if (event := json.loads(line))["event"] == "picture"
    ]
    return statistics.mean(event["seconds"] for event in images[2:])


def run(checkout: Path, *arguments: str) -> str:
    """What Python says on stdout with a checkout's klein."""
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
