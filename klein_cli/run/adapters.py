"""The adapters that options and rows name -> what recipes say of them: digests and weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from klein_cli.checkpoints.lora.find import Downloading
from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.errors import UsageError
from klein_cli.prompts.rows import Defaults, Row
from klein_cli.recipe import MAX_ADAPTERS, Adapter

TAG = re.compile(r"<lora:([^<>:]{1,200})(?::([^<>]{0,40}))?>")
"""How other programs name an adapter within a prompt."""


class InputAdapters:
    """Finds the adapters of a run's rows, and takes them into its `store`.

    Those that a row names are looked for from `folder`, where the prompts file lies, and those of
    the options from the present folder. `downloading` shows who watches a download.
    """

    def __init__(
        self,
        store: AdapterStore,
        *,
        folder: Path,
        downloading: Downloading,
    ) -> None:
        self.store = store
        self._folder = folder
        self._downloading = downloading

    def of(self, row: Row, defaults: Defaults) -> tuple[Adapter, ...]:
        """The adapters of a row: those of the options, then its own.

        Where a row names one of the options' adapters, what it says of it counts. Raises
        UsageError or ModelError for one that cannot be used.
        """
        own = self.store.named(row.lora or (), self._folder, self._downloading)
        named = {adapter.sha256 for adapter in own}
        typed = self.store.named(defaults.lora, downloading=self._downloading)
        given = [adapter for adapter in typed if adapter.sha256 not in named]
        if len(given) + len(own) > MAX_ADAPTERS:
            raise UsageError(
                f"{len(given) + len(own)} adapters are given", f"give at most {MAX_ADAPTERS}"
            )
        return (*given, *own)


def tags_in(prompt: str) -> Iterator[str]:
    """What a prompt says of adapters as other programs read it, as --lora is told it."""
    for name, weight in TAG.findall(prompt):
        yield f"--lora {name}.safetensors" + (f"={weight}" if weight else "")
