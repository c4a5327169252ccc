"""Which adapters are in the transformer's weights, and the way from these to others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from klein_cli.checkpoints.load import Change
from klein_cli.checkpoints.lora.changes import changes_to
from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.engines.engine import Engine
from klein_cli.recipe import Adapter


class Adapters:
    """The adapters of one model, of which the `first` are merged while its weights arrive.

    The `store` has the files of all that recipes will name.
    """

    def __init__(
        self, snapshot: Snapshot, store: AdapterStore, first: Sequence[Adapter] = ()
    ) -> None:
        self.first = tuple(first)
        self._snapshot = snapshot
        self._store = store
        self._merged: tuple[Adapter, ...] | None = _effective(first)

    def named(self, adapters: Iterable[str | Path] | None) -> tuple[Adapter, ...]:
        """Adapters as --lora takes them; the first where there are None.

        Raises UsageError or ModelError for one that is not there or does not fit the model.
        """
        if adapters is None:
            return self.first
        found = self._store.named(adapters)
        self._store.among(found).check(self._snapshot)
        return found

    def changes(self) -> dict[str, Change]:
        """What the first do to the tensors of the transformer.

        Raises ModelError for one that does not fit it.
        """
        return self._changes(_effective(self.first))

    def are_merged(self, wanted: Sequence[Adapter]) -> bool:
        """Whether the weights are changed by these, and by no others."""
        return _effective(wanted) == self._merged

    def merge(self, wanted: Sequence[Adapter], engine: Engine[Any]) -> None:
        """Have the weights changed by these. Raises ModelError for one that does not fit."""
        effective = _effective(wanted)
        self._merged = None  # until all is done: what fails leaves neither
        engine.adapt(self._changes(effective))
        self._merged = effective

    def _changes(self, adapters: Sequence[Adapter]) -> dict[str, Change]:
        self._store.among(adapters).check(self._snapshot)
        found = [(self._store.file(adapter), adapter.weight) for adapter in adapters]
        return changes_to(self._snapshot.part("transformer"), found)


def _effective(adapters: Iterable[Adapter]) -> tuple[Adapter, ...]:
    """Those that change anything."""
    return tuple(adapter for adapter in adapters if adapter.weight)
