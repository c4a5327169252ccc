"""The images that a run was given, by digest: read when they are needed, and again if need be.

Jobs and recipes name an image by its digest alone; a store knows where it is. What stays decoded is
bounded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from klein_cli.errors import UsageError
from klein_cli.images.files import Source
from klein_cli.images.masks import MaskedSource, MaskImage, masked_source, read_mask
from klein_cli.images.reading import Picture, Probe, probe, read
from klein_cli.images.references import prepare
from klein_cli.recipe import Recipe, Reference

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

DECODED_BYTES = 512_000_000
"""What may stay decoded besides what was asked for last."""

Read = TypeVar("Read", Picture, MaskImage)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """(h, w, 3) uint8 `pixels` of a reference as the model sees it."""

    pixels: NDArray[numpy.uint8]

    @property
    def nbytes(self) -> int:
        """What it takes of memory."""
        return self.pixels.nbytes


Decoded = Picture | MaskImage | Prepared


class ImageStore:
    """Where images are, by the SHA-256 of their files; any thread may ask.

    `decoded_bytes` bounds what is kept for the next one who asks.
    """

    def __init__(self, decoded_bytes: int = DECODED_BYTES) -> None:
        self._sources: dict[str, tuple[Source, str]] = {}
        self._stand_ins: set[str] = set()
        self._decoded: OrderedDict[tuple[Any, ...], Decoded] = OrderedDict()
        self._gates: dict[tuple[Any, ...], threading.Lock] = {}
        self._ahead: threading.Thread | None = None
        self._decoded_bytes = decoded_bytes
        self._noted: set[str] = set()
        self._unsaid: list[tuple[str, str]] = []
        self._lock = threading.RLock()

    def add(self, source: Source, *, name: str | None = None) -> Probe:
        """Take in a file, or the bytes of one, without decoding it. Raises UsageError."""
        found = probe(source, name=name)
        self.put(found.sha256, source, name=found.name)
        return found

    def put(self, sha256: str, source: Source, *, name: str, stands_in: bool = False) -> None:
        """Say where the file of a digest is, as another store knew; it is not looked at yet.

        One that `stands_in` is another file of the same pixels, which somebody trusted has made.
        """
        with self._lock:
            self._sources.setdefault(sha256, (source, name))
            if stands_in:
                self._stand_ins.add(sha256)

    def forget(self, sha256: str) -> None:
        """Let go of where a file is, or of its bytes; what is decoded of it stays as it would."""
        with self._lock:
            self._sources.pop(sha256, None)
            self._stand_ins.discard(sha256)

    def notes(self) -> list[tuple[str, str]]:
        """(name, sentence) for what is to be said of images that were decoded since the last call;
        each image is told of once.
        """
        with self._lock:
            said, self._unsaid = self._unsaid, []
            return said

    def source(self, sha256: str) -> Source:
        """Where the file is, or its bytes. KeyError for one that was never taken in."""
        return self._sources[sha256][0]

    def name(self, sha256: str) -> str:
        """What messages call the file."""
        return self._sources[sha256][1]

    def picture(self, sha256: str) -> Picture:
        """The image, decoded. Raises UsageError when its file has gone or has changed."""
        return self._read(sha256, Picture, read)

    def mask(self, sha256: str) -> MaskImage:
        """The mask, decoded; otherwise as `picture`."""
        return self._read(sha256, MaskImage, read_mask)

    def reference(self, reference: Reference) -> NDArray[numpy.uint8]:
        """(h, w, 3) uint8: a recipe's reference as the model sees it.

        Raises UsageError as `picture` does, and for a recipe that tells another size.
        """
        prepared = self._kept(
            (Prepared, reference.sha256), lambda: Prepared(prepare(self.picture(reference.sha256)))
        )
        assert isinstance(prepared, Prepared)
        pixels = prepared.pixels
        _check_size(reference.name, (reference.width, reference.height), pixels.shape)
        return pixels

    def masked(self, recipe: Recipe) -> MaskedSource:
        """The source of a recipe that has a mask, with what of it is repainted.

        Raises UsageError as `reference` does, and for a mask that does not fit the source.
        """
        mask, source = recipe.mask, recipe.references[0]
        assert mask is not None
        masked = masked_source(
            self.picture(source.sha256),
            None if mask.sha256 is None else self.mask(mask.sha256),
            alpha=mask.alpha,
            expand=mask.expand,
            box=mask.box,
        )
        _check_size(source.name, (recipe.width, recipe.height), masked.painted_size[::-1])
        return masked

    def read_ahead(self, recipes: Iterable[Recipe]) -> None:
        """Begin to decode, in a thread, what recipes will ask for; at most one lot at a time.

        What is wrong with a file shows when it is asked for.
        """
        edits = [recipe for recipe in recipes if recipe.references]
        if edits and (self._ahead is None or not self._ahead.is_alive()):
            self._ahead = threading.Thread(target=self._decode, args=(edits,), daemon=True)
            self._ahead.start()

    def _decode(self, recipes: Iterable[Recipe]) -> None:
        for recipe in recipes:
            with suppress(Exception):
                source, *others = recipe.references
                if recipe.mask is None:
                    self.reference(source)
                else:
                    self.picture(source.sha256)
                for other in others:
                    self.reference(other)

    def _read(self, sha256: str, kind: type[Read], reader: Callable[..., Read]) -> Read:
        found = self._kept((kind, sha256), lambda: self._as_it_was(sha256, reader))
        assert isinstance(found, kind)
        return found

    def _as_it_was(self, sha256: str, reader: Callable[..., Read]) -> Read:
        source, name = self._sources[sha256]
        found = reader(source, name=name)
        if sha256 in self._stand_ins:
            return replace(found, sha256=sha256)
        if found.sha256 != sha256:
            raise UsageError(f"{name} has changed since it was first read", "run the command again")
        return found

    def _kept(self, key: tuple[Any, ...], make: Callable[[], Decoded]) -> Decoded:
        """What is kept under a key, made if need be: once, while threads may ask for other keys."""
        with self._lock:
            gate = self._gates.setdefault(key, threading.Lock())
        with gate:
            with self._lock:
                found = self._decoded.get(key)
            try:
                found = found or make()
            finally:
                with self._lock:
                    self._gates.pop(key, None)
            with self._lock:
                self._decoded[key] = found
                self._decoded.move_to_end(key)
                self._note(found)
                while len(self._decoded) > 1 and self._held() > self._decoded_bytes:
                    self._decoded.popitem(last=False)
            return found

    def _note(self, found: Decoded) -> None:
        if isinstance(found, Picture) and found.sha256 not in self._noted:
            self._noted.add(found.sha256)
            self._unsaid += [(found.name, note) for note in found.notes]

    def _held(self) -> int:
        return sum(each.nbytes for each in self._decoded.values())


def _check_size(name: str, told: tuple[int, int], found: tuple[int, ...]) -> None:
    height, width = found[:2]
    if told != (width, height):
        raise UsageError(
            f"the recipe has {name} at {told[0]}x{told[1]}, and it becomes {width}x{height}",
            "the recipe is damaged, or not klein's",
        )
