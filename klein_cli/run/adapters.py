"""The adapters that options and rows name -> what recipes say of them: digests and weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from klein_cli.checkpoints.lora.find import Downloading, located, parsed
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
        self._paths: dict[tuple[Path, str], Path] = {}

    def of(self, row: Row, defaults: Defaults) -> tuple[Adapter, ...]:
        """The adapters of a row: those of the options, then its own.

        Where a row names one of the options' adapters, what it says of it counts. Raises
        UsageError or ModelError for one that cannot be used.
        """
        own = self._found(row.lora or (), self._folder)
        named = {adapter.sha256 for adapter in own}
        given = [a for a in self._found(defaults.lora, Path()) if a.sha256 not in named]
        if len(given) + len(own) > MAX_ADAPTERS:
            raise UsageError(
                f"{len(given) + len(own)} adapters are given", f"give at most {MAX_ADAPTERS}"
            )
        return (*given, *own)

    def _found(self, texts: Iterable[str], folder: Path) -> list[Adapter]:
        return [self._adapter(text, folder) for text in texts]

    def _adapter(self, text: str, folder: Path) -> Adapter:
        source, weight = parsed(text)
        path = self._paths.get((folder, source))
        if path is None:
            path = self._paths[folder, source] = located(source, folder, self._downloading)
        file = self.store.add(path)
        return Adapter(sha256=file.sha256, name=file.name, weight=weight)


def tags_in(prompt: str) -> Iterator[str]:
    """What a prompt says of adapters as other programs read it, as --lora is told it."""
    for name, weight in TAG.findall(prompt):
        yield f"--lora {name}.safetensors" + (f"={weight}" if weight else "")
