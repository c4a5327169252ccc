"""Draw what compare_checkouts.py asks for with the klein that is imported, and keep every number.

    PYTHONPATH=CHECKOUT python scripts/probe_checkout.py WORK.json FOLDER

WORK.json holds pipelines and their batches (`compared_pictures.py`). FOLDER/results.jsonl gets a
line a batch: the hash, shape and dtype of every array; the arrays themselves lie beside it. What is
klein's in here is in the dialects at the end: everything else knows rows and arrays alone.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
Arrays = dict[str, np.ndarray]


def main() -> None:
    """Every pipeline in turn; one that cannot be opened fails all its batches."""
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(sys.argv[2])
    dialect = the_dialect()
    with open(folder / "results.jsonl", "w", encoding="utf-8") as results:
        for pipeline in work:
            for result in probed(dialect, pipeline, folder):
                results.write(json.dumps(result) + "\n")
                results.flush()


def probed(dialect: Any, wanted: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """The results of a pipeline's batches, {"name", "arrays", "error", "seconds"} each."""
    try:
        pipeline = dialect.open(wanted["model"], wanted["settings"], wanted["tapped_layers"])
    except Exception as error:
        for batch in wanted["batches"]:
            yield {"name": batch["name"], "arrays": {}, "error": repr(error), "seconds": 0.0}
        return
    for batch in wanted["batches"]:
        started = time.perf_counter()
        arrays: Arrays = {}
        error = None
        try:
            dialect.draw(pipeline, batch["rows"], tiled=batch["tiled"], arrays=arrays)
        except Exception as raised:
            error = repr(raised)
        np.savez(folder / array_file(batch["name"]), **arrays)
        facts = {name: fact_of(array) for name, array in arrays.items()}
        seconds = round(time.perf_counter() - started, 2)
        yield {"name": batch["name"], "arrays": facts, "error": error, "seconds": seconds}
    del pipeline
    gc.collect()
    empty_gpu()


def array_file(name: str) -> str:
    """Where the arrays of a batch lie in the folder."""
    return hashlib.sha256(name.encode()).hexdigest()[:16] + ".npz"


def fact_of(array: np.ndarray) -> list[Any]:
    """What two arrays have in common only if they are the same: [hash, shape, dtype]."""
    data = np.ascontiguousarray(array)
    return [hashlib.sha256(data.tobytes()).hexdigest(), list(array.shape), str(array.dtype)]


def empty_gpu() -> None:
    """Give back what the last pipeline held, so that the next one fits beside the other side's."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def numbered(what: str, arrays: Sequence[Any]) -> Arrays:
    """Arrays by name: "latents 1", "latents 2" ..."""
    return {f"{what} {number}": np.asarray(one) for number, one in enumerate(arrays, start=1)}


def the_dialect() -> Any:
    """The first whose names can be imported."""
    for dialect in DIALECTS:
        try:
            return dialect()
        except ImportError:
            continue
    raise SystemExit("the klein that is imported has another API: teach DIALECTS to speak it")


def found(name: str, *modules: str) -> Any:
    """What is called `name` in the first of the modules that has it: modules move, names stay."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    raise ImportError(f"{name} is in none of {', '.join(modules)}")


class Loaded:
    """The API of commit 41edafe: `Pipeline.load` of a snapshot and settings, and a `Trace`."""

    def __init__(self) -> None:
        self._pipeline = found("Pipeline", "klein_cli.pipeline")
        self._trace = found("Trace", "klein_cli.pipeline")
        self._load = self._pipeline.load
        self._recipe = found("Recipe", "klein_cli.recipe")
        self._settings = found("Settings", "klein_cli.recipe", "klein_cli.settings")
        self._choose = found("choose", "klein_cli.machine", "klein_cli.device.choose")
        self._resolve = found("resolve", "klein_cli.snapshot", "klein_cli.checkpoints.resolve")

    def open(self, model: str, settings: Mapping[str, str], taps: Sequence[int] | None) -> Any:
        """A pipeline; `taps` are the text encoder's layers to read, where not the usual ones.

        Kernels and fp8 are set behind `choose`, which refuses both on a CPU, where Triton's
        interpreter and torch compute them all the same.
        """
        snapshot = self._resolve(model)
        if taps is not None:
            snapshot = replace(snapshot, preset=replace(snapshot.preset, tapped_layers=tuple(taps)))
        late = {name: settings[name] for name in ("kernels", "quantize")}
        early = {name: value for name, value in settings.items() if name not in late}
        return self._load(snapshot, self._choose(self._settings(**early)).with_(**late))

    def draw(self, pipeline: Any, rows: Sequence[Row], *, tiled: bool, arrays: Arrays) -> None:
        """Fill `arrays`: "embeddings N", "latents N" after each step, and "pixels N".

        What was computed before an error is there, too.
        """
        trace = self._trace()
        recipes = [self._recipe(**row) for row in rows]
        try:
            pixels = pipeline.render(recipes, trace=trace, tiled=tiled)
        finally:
            arrays |= numbered("embeddings", trace.embeddings)
            arrays |= numbered("latents", trace.latents)
        arrays |= numbered("pixels", pixels)


DIALECTS = (Loaded,)
"""An API that has none of these names gets a class of its own here, with `open` and `draw`."""


if __name__ == "__main__":
    main()
