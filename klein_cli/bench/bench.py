"""The whole run: ceilings, warm images, throughput and cold processes -> one JSON object.

That object is all that a run leaves: tables are made of it, today or later.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from klein_cli.bench import scope as w
from klein_cli.bench.cold import cold
from klein_cli.bench.contender import KLEIN, Klein
from klein_cli.bench.flops import Model, flops
from klein_cli.bench.peers import TUNED, Diffusers, load_peers
from klein_cli.bench.prompts import alike
from klein_cli.bench.references import as_options, references_of_size
from klein_cli.bench.roofline import Ceiling, ceilings, limits
from klein_cli.bench.scope import Scope
from klein_cli.bench.throughput import of_contender, of_klein
from klein_cli.bench.warm import warm
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.device.choose import provenance, torch_dtype
from klein_cli.device.memory import is_out_of_memory, release_memory
from klein_cli.errors import OutOfMemoryError
from klein_cli.images.store import ImageStore
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings

Difference = Callable[[NDArray[np.uint8], NDArray[np.uint8]], float]
"""How far two images are from each other, in levels of 255."""

OnEvent = Callable[[str], None]


def bench(
    snapshot: Snapshot,
    settings: Settings,
    scope: Scope,
    *,
    difference: Difference,
    on_event: OnEvent,
) -> dict[str, Any]:
    """Measure what `scope` names; `settings` come from `choose`. The result is ready for JSON.

    Raises ModelError for a snapshot that cannot be loaded, OutOfMemoryError when the sides do not
    fit beside each other, KleinError when a process that is timed fails.
    """
    try:
        result: dict[str, Any] = _plain(
            _Bench(snapshot, settings, scope, difference, on_event).run()
        )
        return result
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        words = str(error).splitlines()[0]
    raise OutOfMemoryError(
        f"not enough memory on {settings.device}: {words}",
        "leave out --peer, whose pipelines are loaded beside klein, or use a smaller --size",
    )


@dataclass
class _Bench:
    """One run, part after part. `sizes` grow with each; `left_out` says what has no place here."""

    snapshot: Snapshot
    settings: Settings
    scope: Scope
    difference: Difference
    on_event: OnEvent
    left_out: dict[str, str] = field(default_factory=dict)
    sizes: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = torch.device(self.settings.device)
        self.images = ImageStore()
        self.recipes = [self._recipe(*size) for size in self.scope.sizes]

    def run(self) -> dict[str, Any]:
        """All parts, in the order that spares memory and time."""
        started = time.perf_counter()
        parts = self.scope.parts
        model = Model.of(self.snapshot)
        found = self._ceilings(model) if w.CEILINGS in parts else []
        self.sizes = [self._size(model, recipe, found) for recipe in self.recipes]
        peers = self._warm() if w.WARM in parts else []
        if w.THROUGHPUT in parts:
            peers = peers or self._peers()
            self._throughput(peers)
        peers.clear()
        release_memory()
        processes = self._cold() if w.COLD in parts else {}
        return {
            "format": w.FORMAT,
            "date": datetime.now(UTC).date().isoformat(),
            "model": {"name": self.snapshot.name, "revision": self.snapshot.revision},
            "settings": asdict(self.settings),
            "machine": self._machine(),
            "wanted": asdict(self.scope),
            "ceilings": [asdict(ceiling) for ceiling in found],
            "sizes": self.sizes,
            "cold": {name: asdict(side) for name, side in processes.items()},
            "left_out": [{"what": what, "why": why} for what, why in self.left_out.items()],
            "seconds": time.perf_counter() - started,
        }

    def _ceilings(self, model: Model) -> list[Ceiling]:
        self.on_event("the machine's ceilings")
        found, left_out = ceilings(
            model,
            model.tokens(*self.scope.sizes[0]),
            self.device,
            torch_dtype(self.settings.dtype),
            self.scope.amount.ceiling_seconds,
        )
        self.left_out |= left_out
        release_memory()
        return found

    def _size(self, model: Model, recipe: Recipe, found: Sequence[Ceiling]) -> dict[str, Any]:
        """What is known of a size before an image is drawn."""
        guided = recipe.guidance > 1.0 and not self.snapshot.preset.distilled
        todo = flops(
            model,
            recipe.width,
            recipe.height,
            recipe.steps,
            guided=guided,
            references=recipe.shape.references,
            kv_cache=self.snapshot.preset.kv_cache,
        )
        by_name = limits(todo, recipe.steps, found, self.settings.dtype) if found else {}
        return {
            "width": recipe.width,
            "height": recipe.height,
            "steps": recipe.steps,
            "references": len(recipe.references),
            "work": asdict(todo),
            "limits": by_name,
            "warm": {},
            "pixels": {},
            "throughput": {},
        }

    def _warm(self) -> list[Diffusers]:
        """klein and its peers, one image at a time; the peers stay for what follows."""
        klein = Klein.load(self.snapshot, self.settings, self.on_event, self.images)
        peers = self._peers()
        for recipe, size in zip(self.recipes, self.sizes, strict=True):
            found = warm(
                [klein, *peers],
                recipe,
                self.scope.amount.rounds,
                self.device,
                self.on_event,
                self.images,
            )
            size["warm"] = {name: asdict(side) for name, side in found.items()}
            ours = np.asarray(klein.draw(recipe))
            for peer in peers:
                theirs = np.asarray(peer.draw_as_klein(recipe).convert("RGB"))
                size["pixels"][peer.name] = self.difference(ours, theirs)
        if not klein.memory.known:
            self.left_out["memory"] = "it is counted on GPUs only"
        return peers

    def _peers(self) -> list[Diffusers]:
        if not self.scope.peer:
            return []
        peers = load_peers(
            self.snapshot.root,
            self.settings,
            compile_vae=self.scope.compile_vae,
            images=self.images,
            kv_cache=self.snapshot.preset.kv_cache,
            on_event=self.on_event,
        )
        if len(peers) == 1:
            self.left_out[TUNED] = "its tuning is for GPUs"
        return peers

    def _throughput(self, peers: Sequence[Diffusers]) -> None:
        release_memory()
        pictures, batch_size = self.scope.amount.pictures, self.scope.batch_size
        for recipe, size in zip(self.recipes, self.sizes, strict=True):
            wanted = f"{recipe.width}x{recipe.height}: {pictures} images"
            with tempfile.TemporaryDirectory(prefix="klein-bench-") as name:
                folder = Path(name)
                self.on_event(f"{wanted} by klein generate")
                given = as_options(recipe, self.images, folder)
                ours = of_klein(
                    self.snapshot, self.settings, recipe, pictures, batch_size, folder, given
                )
                size["throughput"][KLEIN] = asdict(ours)
                for peer in peers:
                    self.on_event(f"{wanted} by {peer.name}")
                    theirs = of_contender(peer, recipe, pictures, folder)
                    size["throughput"][peer.name] = asdict(theirs)

    def _cold(self) -> dict[str, Any]:
        recipe = self.recipes[0]
        with tempfile.TemporaryDirectory(prefix="klein-bench-") as name:
            folder = Path(name)
            given = as_options(recipe, self.images, folder)
            found = cold(
                self.snapshot, self.settings, recipe, self.scope, folder, self.on_event, given
            )
        if any(side.dropped is None for side in found.values()):
            drop = self.scope.amount.drop
            why = "the system keeps it" if drop else "--quick leaves it as it is"
            self.left_out["processes without page cache"] = why
        return found

    def _machine(self) -> dict[str, str]:
        record = {**provenance(self.settings), "cpus": str(os.cpu_count())}
        if self.scope.peer:
            record |= {name: version(name) for name in ("diffusers", "transformers")}
        return record

    def _recipe(self, width: int, height: int) -> Recipe:
        return Recipe(
            prompt=alike(0),
            seed=0,
            width=width,
            height=height,
            steps=self.scope.steps,
            guidance=self.scope.guidance,
            model=self.snapshot.preset.name,
            references=references_of_size(self.scope.references, width, height, self.images),
        )


def _plain(value: Any) -> Any:
    """The value as JSON will have it, numbers without the digits that mean nothing."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
