"""Bytes of files -> tensors on one device, by several threads, in the order asked for.

Whoever asks goes on with something else and waits for what is needed next. On the host each thread
holds one buffer and nothing more.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

PIECE_BYTES = 16 * 2**20
_MOST_THREADS = 8


@dataclass(frozen=True, slots=True)
class Stored:
    """The bytes of a tensor in a file, from `offset` on, and the tensor they belong `into`."""

    path: Path
    offset: int
    into: Tensor


class Arrival:
    """Some tensors on their way. `bytes` in all; `seconds` from the first byte to the last."""

    def __init__(self, pieces: int, total: int, ready: torch.cuda.Event | None) -> None:
        self.bytes = total
        self.seconds = 0.0
        self.ready = ready
        self._left = pieces
        self._began: float | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._whole = threading.Event()
        if not pieces:
            self._whole.set()

    @property
    def wanted(self) -> bool:
        """False once it is known that not all can come."""
        return self._error is None

    def begin(self) -> None:
        """A thread takes a piece."""
        with self._lock:
            self._began = self._began or time.perf_counter()

    def finish(self, error: BaseException | None = None) -> None:
        """A piece is there, or will never be."""
        with self._lock:
            self._error = self._error or error
            self._left -= 1
            if not self._left:
                self.seconds = time.perf_counter() - (self._began or time.perf_counter())
                self._whole.set()

    def wait(self) -> None:
        """Return when all is there. Raises what kept a thread from reading: mostly an OSError."""
        self._whole.wait()
        if self._error is not None:
            raise self._error


@dataclass(frozen=True, slots=True)
class _Piece:
    arrival: Arrival
    path: Path
    offset: int
    into: Tensor


class Reader:
    """Threads that read for one device until the `with` block is over and all has been read.

    After an error in the block, and when Python ends, they drop what is left.
    """

    def __init__(self, device: torch.device, piece_bytes: int = PIECE_BYTES) -> None:
        if device.type == "cuda" and device.index is None:  # what is current differs by thread
            device = torch.device("cuda", torch.cuda.current_device())
        self._device = device
        self._piece_bytes = piece_bytes
        self._pieces: SimpleQueue[_Piece | None] = SimpleQueue()
        self._dropped = False
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name="klein-reader")
            for _ in range(min(_MOST_THREADS, os.cpu_count() or 1))
        ]

    def __enter__(self) -> Reader:
        # Python would end threads that are at work in torch by a way that aborts the process.
        atexit.register(_stop, weakref.ref(self))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.stop()
            return
        self._finish()

    def stop(self) -> None:
        """Drop what is not read yet; no thread is left when this returns."""
        self._dropped = True
        self._finish()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _finish(self) -> None:
        for _ in self._threads:
            self._pieces.put(None)

    def read(self, tensors: Iterable[Stored]) -> Arrival:
        """Begin to read; each tensor has no gaps and lies on the reader's device."""
        cut = [(stored, *piece) for stored in tensors for piece in self._cut(stored.into)]
        total = sum(into.numel() for _, _, into in cut)
        ready = None
        if self._device.type == "cuda":  # the memory may still be in use by earlier work
            ready = torch.cuda.current_stream(self._device).record_event()
        arrival = Arrival(len(cut), total, ready)
        for stored, begin, into in cut:
            self._pieces.put(_Piece(arrival, stored.path, stored.offset + begin, into))
        return arrival

    def _cut(self, into: Tensor) -> list[tuple[int, Tensor]]:
        flat = into.view(-1).view(torch.uint8)
        size = self._piece_bytes
        return [(at, flat[at : at + size]) for at in range(0, flat.numel(), size)]

    def _work(self) -> None:
        with ExitStack() as stack:
            lane: _Lane | None = None
            while (piece := self._pieces.get()) is not None:
                try:
                    if self._dropped:
                        raise InterruptedError("reading was given up")
                    if piece.arrival.wanted:
                        piece.arrival.begin()
                        lane = lane or self._lane(stack)
                        lane.carry(piece)
                except BaseException as error:  # handed to whoever waits
                    piece.arrival.finish(error)
                else:
                    piece.arrival.finish()

    def _lane(self, stack: ExitStack) -> _Lane:
        if self._device.type == "cuda":  # or pinning would wake the first GPU too
            stack.enter_context(torch.cuda.device(self._device))
        return stack.enter_context(_Lane(self._device, self._piece_bytes))


def _stop(reader: weakref.ref[Reader]) -> None:
    left = reader()
    if left is not None:
        left.stop()


class _Lane:
    """What one thread reads with: a buffer, open files and a stream of its own."""

    def __init__(self, device: torch.device, size: int) -> None:
        on_gpu = device.type == "cuda"
        self._stack = ExitStack()
        self._files: dict[Path, FileIO] = {}
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu)
        numbers: Any = self._buffer.numpy()
        self._bytes = memoryview(numbers)

    def __enter__(self) -> _Lane:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def carry(self, piece: _Piece) -> None:
        """File -> buffer -> device; the bytes are there when this returns."""
        size = piece.into.numel()
        self._fill(self._bytes[:size], piece.path, piece.offset)
        with self._on_stream():
            if self._stream is not None and piece.arrival.ready is not None:
                self._stream.wait_event(piece.arrival.ready)
            piece.into.copy_(self._buffer[:size], non_blocking=True)
            if self._stream is not None:
                self._stream.synchronize()

    def _fill(self, view: memoryview, path: Path, offset: int) -> None:
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = self._stack.enter_context(FileIO(path))
        file.seek(offset)
        while view:
            count = file.readinto(view)
            if not count:
                raise EOFError(f"{path} ends too early")
            view = view[count:]

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
