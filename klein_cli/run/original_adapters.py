"""A recipe's adapters -> the files that they are here: what `klein reproduce` draws with again.

The recipe may be a stranger's: its names are looked for beside the image, in the present folder and
among the user's models, and a file is used if its digest is the recipe's. Another is used where the
user names it, and said.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from klein_cli.checkpoints.lora.adapter import AdapterFile
from klein_cli.checkpoints.lora.find import parsed
from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.errors import ModelError, UsageError
from klein_cli.recipe import Adapter, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAdapters:
    """The adapters to draw with, and the names of `others`: those that are not as then."""

    adapters: tuple[Adapter, ...]
    others: tuple[str, ...] = ()


class OriginalAdapters:
    """Where adapters may be: in the files that the user `named`, as --lora takes them.

    Raises UsageError or ModelError for one of these that cannot be used.
    """

    def __init__(self, store: AdapterStore, named: Sequence[str]) -> None:
        self._store = store
        self._named = [
            (adapter, parsed(text).weight)
            for text, adapter in zip(named, store.named(named), strict=True)
        ]

    def of(self, recipe: Recipe, beside: Path) -> FoundAdapters:
        """The adapters for the recipe of the image at `beside`.

        One that the user gave a weight has that, the others the weight that they had then. Raises
        UsageError for one that is not there.
        """
        then = {adapter.sha256 for adapter in recipe.adapters}
        others = [adapter for adapter, _ in self._named if adapter.sha256 not in then]
        if others:
            adapters = tuple(adapter for adapter, _ in self._named)
            return FoundAdapters(
                adapters=adapters, others=tuple(adapter.name for adapter in others)
            )
        weights = {adapter.sha256: weight for adapter, weight in self._named if weight is not None}
        return FoundAdapters(
            adapters=tuple(
                self._find(each, beside).weighing(weights.get(each.sha256, each.weight))
                for each in recipe.adapters
            )
        )

    def _find(self, wanted: Adapter, beside: Path) -> AdapterFile:
        for file in self._store.files:
            if file.sha256 == wanted.sha256:
                return file
        there = list(self._called(wanted.name, beside))
        for file in there:
            if file.sha256 == wanted.sha256:
                return file
        what = f"{wanted.name}, with which {beside} was made, is not here"
        if there:
            what = f"{there[0].path} is another adapter than the one that {beside} was made with"
        raise UsageError(
            what,
            f"--lora FILE says where it is, or what to use instead; {wanted.name} is looked for "
            "beside the image, here and in --models-dir",
        )

    def _called(self, name: str, beside: Path) -> Iterator[AdapterFile]:
        """The adapters of this name where they are looked for."""
        if name != os.path.basename(name):
            return
        for path in (beside.parent / name, Path(name), self._store.by_name(name, Path())):
            # What is broken, or no adapter, is not the one that is wanted.
            with suppress(ModelError):
                if path.is_file():
                    yield self._store.add(path)
