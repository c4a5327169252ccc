"""The images that a run was given, by digest: read when they are needed, and again if need be.

Jobs and recipes name an image by its digest alone; a store knows where it is. What stays decoded is
bounded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from klein_cli.errors import UsageError
from klein_cli.images.files import Source
from klein_cli.images.masks import MaskImage, read_mask
from klein_cli.images.reading import Picture, Probe, probe, read

DECODED_BYTES = 512_000_000
"""What may stay decoded besides what was asked for last."""

Read = TypeVar("Read", Picture, MaskImage)


class ImageStore:
    """Where images are, by the SHA-256 of their files; any thread may ask.

    `decoded_bytes` bounds what is kept for the next one who asks.
    """

    def __init__(self, decoded_bytes: int = DECODED_BYTES) -> None:
        self._sources: dict[str, tuple[Source, str]] = {}
        self._decoded: OrderedDict[tuple[type, str], Picture | MaskImage] = OrderedDict()
        self._decoded_bytes = decoded_bytes
        self._lock = threading.RLock()

    def add(self, source: Source, *, name: str | None = None) -> Probe:
        """Take in a file, or the bytes of one, without decoding it. Raises UsageError."""
        found = probe(source, name=name)
        self.put(found.sha256, source, name=found.name)
        return found

    def put(self, sha256: str, source: Source, *, name: str) -> None:
        """Say where the file of a digest is, as another store knew; it is not looked at yet."""
        with self._lock:
            self._sources.setdefault(sha256, (source, name))

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

    def profile(self, sha256: str) -> bytes | None:
        """The ICC profile that kept pixels of the image are in; None for sRGB."""
        return self.picture(sha256).profile

    def _read(self, sha256: str, kind: type[Read], reader: Callable[..., Read]) -> Read:
        with self._lock:
            found = self._decoded.get((kind, sha256))
            if not isinstance(found, kind):
                source, name = self._sources[sha256]
                found = reader(source, name=name)
                if found.sha256 != sha256:
                    raise UsageError(
                        f"{name} has changed since it was first read", "run the command again"
                    )
                self._decoded[kind, sha256] = found
            self._decoded.move_to_end((kind, sha256))
            while len(self._decoded) > 1 and self._held() > self._decoded_bytes:
                self._decoded.popitem(last=False)
            return found

    def _held(self) -> int:
        return sum(each.nbytes for each in self._decoded.values())
