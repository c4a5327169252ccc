"""The adapters that a run was given: found, read once, and known by what is in their files."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from klein_cli.checkpoints.lora.adapter import (
    AdapterFile,
    check_fit,
    check_size,
    coverage,
    read_adapter,
)
from klein_cli.checkpoints.lora.find import Downloading, Wanted, located, parsed
from klein_cli.checkpoints.models_dir import ModelsDir
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.checkpoints.source import stamp_of
from klein_cli.errors import ModelError
from klein_cli.paths import askable, user_path
from klein_cli.presets import presets
from klein_cli.recipe import Adapter


class AdapterStore:
    """Adapters by the digest of their files. Each file is read and hashed once.

    Bare names are looked for in `models_dir`, if there is one.
    """

    def __init__(self, models_dir: ModelsDir | None = None) -> None:
        self._models_dir = models_dir
        self._by_path: dict[Path, AdapterFile] = {}
        self._by_digest: dict[str, AdapterFile] = {}
        self._located: dict[tuple[Path, str], Path] = {}

    def __bool__(self) -> bool:
        return bool(self._by_digest)

    @property
    def files(self) -> list[AdapterFile]:
        """All of them, one of each content."""
        return list(self._by_digest.values())

    def add(self, path: Path) -> AdapterFile:
        """The adapter at `path`, read again if it is another file by now. Raises ModelError when it
        cannot be used with any model.
        """
        path = path.absolute()
        found = self._by_path.get(path)
        if found is None or not path.exists() or found.stamp != stamp_of(path):
            found = self._by_path[path] = read_adapter(path)
            self._by_digest[found.sha256] = found
        return found

    def named(
        self,
        texts: Iterable[str | Path],
        folder: Path = Path(),
        downloading: Downloading = nullcontext,
    ) -> tuple[Adapter, ...]:
        """The adapters of files, or of what --lora takes, with their weights.

        They are looked for from `folder`; see `find.located`. Raises UsageError or ModelError for
        one that cannot be found or used.
        """
        return tuple(self._named(text, folder, downloading) for text in texts)

    def _named(self, text: str | Path, folder: Path, downloading: Downloading) -> Adapter:
        source, weight = parsed(text) if isinstance(text, str) else Wanted(str(text))
        path = self._located.get((folder, source))
        if path is None:
            path = self._located[folder, source] = self._place(source, folder, downloading)
        return self.add(path).weighing(1.0 if weight is None else weight)

    def by_name(self, source: str, folder: Path) -> Path:
        """The path from `folder` on, or the file of that name in the folder of models.

        Raises UsageError when that has several of the name.
        """
        path = askable(folder / user_path(source))
        if self._models_dir is None or path.exists():
            return path
        found = self._models_dir.find(source, "lora")
        return path if found == source else Path(found)

    def _place(self, source: str, folder: Path, downloading: Downloading) -> Path:
        path = self.by_name(source, folder)
        return located(str(path.absolute()) if path.exists() else source, folder, downloading)

    def file(self, adapter: Adapter) -> AdapterFile:
        """The file of a recipe's adapter. Raises ModelError when it was not given."""
        found = self._by_digest.get(adapter.sha256)
        if found is None:
            raise ModelError(
                f"the adapter {adapter.name} ({adapter.sha256[:12]}) was not given",
                "give its file: --lora FILE",
            )
        return found

    def among(self, adapters: Iterable[Adapter]) -> AdapterStore:
        """The files of some recipes' adapters, and no others."""
        found = AdapterStore()
        found._by_digest = {adapter.sha256: self.file(adapter) for adapter in adapters}
        return found

    def check_size(self, model: str) -> None:
        """Raise ModelError for an adapter of the other size than a model's name says, if it says
        one. The model need not be here.
        """
        for file in self.files if model in presets() else ():
            check_size(file, model)

    def check(self, snapshot: Snapshot) -> list[str]:
        """A line for each adapter, of how much it changes of a model.

        Raises ModelError for one that does not fit it. Reads headers alone.
        """
        files = self.files
        if not files:
            return []
        tensors = snapshot.part("transformer").tensors()
        shapes = {name: held.shape for name, held in tensors.items()}
        for file in files:
            check_fit(file, shapes, snapshot.name)
        return [f"{file.name}: {file.kinds}, {coverage(file, shapes)}" for file in files]
