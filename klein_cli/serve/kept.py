"""Images that were given out as URLs: in memory, for some minutes, under names nobody can guess."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

SECONDS = 600.0
_MOST_BYTES = 256_000_000


class KeptFiles:
    """Files by name, each until its time is over or newer ones need its place."""

    def __init__(
        self, *, most_bytes: int = _MOST_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._files: OrderedDict[str, tuple[bytes, str, float]] = OrderedDict()
        self._most_bytes = most_bytes
        self._clock = clock

    def put(self, data: bytes, extension: str) -> str:
        """Keep a file; its name, of 128 random bits and the extension."""
        name = secrets.token_hex(16) + extension
        self._files[name] = data, extension, self._clock() + SECONDS
        self._sweep()
        return name

    def get(self, name: str) -> tuple[bytes, str] | None:
        """A file and its extension, None when it is not, or no longer, there."""
        self._sweep()
        found = self._files.get(name)
        return None if found is None else found[:2]

    def _sweep(self) -> None:
        now = self._clock()
        while self._files:
            name, (_, _, until) = next(iter(self._files.items()))
            size = sum(len(data) for data, _, _ in self._files.values())
            if until > now and (size <= self._most_bytes or len(self._files) == 1):
                return
            del self._files[name]
