"""A fresh process from its start to a PNG and its end, and where that time goes."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from klein_cli.bench.contender import KLEIN
from klein_cli.bench.measure import Spread
from klein_cli.bench.page_cache import drop_cached, environment
from klein_cli.bench.peers import PLAIN
from klein_cli.bench.processes import generate_command, run
from klein_cli.bench.scope import WARM, Scope
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings

_SCRIPT = Path(__file__).with_name("plain_diffusers.py")
_PHASE = re.compile(r"\s*(\S.*?)\s+(\d+\.\d+) s")
_WHOLE = "in all"
_OUTSIDE = "Python's start and end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cold:
    """Seconds of whole processes. `warm`: with the files in the page cache; `dropped`: once, with
    the page cache dropped before, or None; `split`: medians of the warm runs' phases, as the
    process itself tells them."""

    warm: Spread
    dropped: float | None
    split: dict[str, float]


Process = Callable[[], tuple[float, dict[str, float]]]
"""Run one process: its seconds, and by phase."""


def cold(
    snapshot: Snapshot,
    settings: Settings,
    recipe: Recipe,
    scope: Scope,
    folder: Path,
    on_event: Callable[[str], None],
    given: Sequence[str] = (),
) -> dict[str, Cold]:
    """klein and, if wanted, a plain diffusers script, by name, in changing order.

    All files are in the page cache: if no warm part of the run has read them, each runs once before
    it is timed. `given` are the options that name the recipe's references. To drop the cache, they
    leave it before one last run of each. Raises KleinError when a process fails.
    """
    runs = scope.amount.processes
    processes: dict[str, Process] = {
        KLEIN: lambda: _klein(snapshot, settings, recipe, folder, given)
    }
    if scope.peer:
        processes[PLAIN] = lambda: _plain(snapshot, settings, recipe, folder, given)
    for name, process in processes.items() if WARM not in scope.parts else ():
        on_event(f"a first process of {name}")
        process()
    found: dict[str, list[tuple[float, dict[str, float]]]] = {name: [] for name in processes}
    for number in range(runs):
        names = list(processes)
        for name in names if number % 2 == 0 else names[::-1]:
            on_event(f"process {number + 1} of {runs} of {name}")
            found[name].append(processes[name]())
    dropped: dict[str, float] = {}
    for name, process in processes.items() if scope.amount.drop else ():
        on_event(f"a process of {name} without page cache")
        if drop_cached([snapshot.root, *environment()]):
            dropped[name], _ = process()
    return {
        name: Cold(
            warm=Spread.of([seconds for seconds, _ in timed]),
            dropped=dropped.get(name),
            split={
                phase: statistics.median(split[phase] for _, split in timed)
                for phase in timed[0][1]
            },
        )
        for name, timed in found.items()
    }


def _klein(
    snapshot: Snapshot, settings: Settings, recipe: Recipe, folder: Path, given: Sequence[str]
) -> tuple[float, dict[str, float]]:
    output = str(folder / "klein.png")
    command = generate_command(snapshot.root, settings, recipe, recipe.prompt, "-o", output)
    seconds, _, said = run([*command, "-y", "-v", *given])
    return seconds, phases(said, seconds)


def phases(said: str, seconds: float) -> dict[str, float]:
    """The phases that `klein generate -v` printed in `said`, and what of `seconds` lies outside."""
    matches = (_PHASE.fullmatch(line) for line in said.splitlines())
    split = {found[1]: float(found[2]) for found in matches if found}
    whole = split.pop(_WHOLE, None)
    if whole is not None:
        split[_OUTSIDE] = seconds - whole
    return split


def _plain(
    snapshot: Snapshot, settings: Settings, recipe: Recipe, folder: Path, given: Sequence[str]
) -> tuple[float, dict[str, float]]:
    options = {
        **asdict(recipe),
        "root": str(snapshot.root),
        "device": settings.device,
        "dtype": settings.dtype,
        "images": list(given[1::2]),
        "kv_cache": snapshot.preset.kv_cache,
        "output": str(folder / "diffusers.png"),
    }
    # -P: the folder of the script holds modules of ours, which must not hide others.
    seconds, said, _ = run([sys.executable, "-P", str(_SCRIPT), json.dumps(options)])
    split: dict[str, float] = json.loads(said.splitlines()[-1])
    split[_OUTSIDE] = seconds - sum(split.values())
    return seconds, split
