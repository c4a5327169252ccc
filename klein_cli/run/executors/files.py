"""The image files of a batch on their way to a worker: by their path, or by their bytes.

Jobs name images by digest alone. A worker on this machine reads a file where it lies; one on
another machine, and what came from standard input, need the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from klein_cli.images.files import file_bytes
from klein_cli.recipe import Recipe

if TYPE_CHECKING:
    from klein_cli.images.store import ImageStore


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFile:
    """An image file: its `path`, or where there is none its `data`.

    If it `stands_in`, it is another file of the same pixels than the one whose digest that is.
    """

    sha256: str
    name: str
    path: str | None
    data: bytes = field(default=b"", repr=False)
    stands_in: bool = False

    def put_into(self, store: ImageStore) -> None:
        """Tell a store of it."""
        source = self.data if self.path is None else Path(self.path)
        store.put(self.sha256, source, name=self.name, stands_in=self.stands_in)


def files_of(recipes: Iterable[Recipe], store: ImageStore, *, by_path: bool) -> list[SentFile]:
    """Every file that some recipes need, once. Raises UsageError for one that has gone."""
    digests = dict.fromkeys(sha256 for recipe in recipes for sha256 in recipe.digests())
    return [_sent(sha256, store, by_path) for sha256 in digests]


def _sent(sha256: str, store: ImageStore, by_path: bool) -> SentFile:
    source, name = store.source(sha256), store.name(sha256)
    if by_path and isinstance(source, Path):
        return SentFile(sha256=sha256, name=name, path=str(source.resolve()))
    return SentFile(sha256=sha256, name=name, path=None, data=file_bytes(source, name))
