"""The adapters that a run was given: found, read once, and known by what is in their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from klein_cli.checkpoints.lora.adapter import AdapterFile, check_fit, coverage, read_adapter
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.errors import ModelError
from klein_cli.recipe import Adapter


class AdapterStore:
    """Adapters by the digest of their files. Each file is read and hashed once."""

    def __init__(self) -> None:
        self._by_path: dict[Path, AdapterFile] = {}
        self._by_digest: dict[str, AdapterFile] = {}

    def __bool__(self) -> bool:
        return bool(self._by_digest)

    @property
    def files(self) -> list[AdapterFile]:
        """All of them, one of each content."""
        return list(self._by_digest.values())

    def add(self, path: Path) -> AdapterFile:
        """The adapter at `path`. Raises ModelError when it cannot be used with any model."""
        path = path.absolute()
        found = self._by_path.get(path)
        if found is None:
            found = self._by_path[path] = read_adapter(path)
            self._by_digest.setdefault(found.sha256, found)
        return found

    def file(self, adapter: Adapter) -> AdapterFile:
        """The file of a recipe's adapter. Raises ModelError when it was not given."""
        found = self._by_digest.get(adapter.sha256)
        if found is None:
            raise ModelError(
                f"the adapter {adapter.name} ({adapter.sha256[:12]}) was not given",
                "give its file: --lora FILE",
            )
        return found

    def check(self, snapshot: Snapshot) -> Iterator[str]:
        """A line for each adapter, of how much it changes of a model, when all of them fit it.

        Raises ModelError otherwise. Reads headers alone.
        """
        if not self:
            return
        tensors = snapshot.part("transformer").tensors()
        shapes = {name: held.shape for name, held in tensors.items()}
        for file in self.files:
            check_fit(file, shapes, snapshot.name)
        for file in self.files:
            yield f"{file.name}: {file.kinds}, {coverage(file, shapes)}"
