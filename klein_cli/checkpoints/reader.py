"""Bytes of files -> tensors on one device, by several threads, in the order asked for.

Whoever asks does something else and waits for what is needed next. On the host each thread
holds one buffer and nothing more.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
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
class Extent:
    """Bytes of a file, from `offset` on, and the tensor that they go `into` as they are."""

    path: Path
    offset: int
    into: Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """`count` rows of `row_bytes` each in a file, from `offset` on, handed to `put` some at a time.

    `put` is given the number of the first row and the rows' bytes (n,) uint8 on the device, which
    are not there any more when it returns; it is called by one thread at a time.
    """

    path: Path
    offset: int
    count: int
    row_bytes: int
    put: Callable[[int, Tensor], None]


class ReadHandle:
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
    """What one thread reads at a time: `into` a tensor, or to be `put`."""

    path: Path
    offset: int
    size: int
    into: Tensor | None = None
    put: Callable[[Tensor], None] | None = None


class Reader:
    """Threads that read for one device until the `with` block is over and all has been read.

    After an error in the block, and when Python ends, they drop what is left.
    """

    def __init__(self, device: torch.device, piece_bytes: int = PIECE_BYTES) -> None:
        if device.type == "cuda" and device.index is None:  # what is current differs by thread
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self._piece_bytes = piece_bytes
        self._pieces: SimpleQueue[tuple[ReadHandle, _Piece] | None] = SimpleQueue()
        self._dropped = False
        self._put_lock = _PutLock(device)
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

    def read(self, wanted: Iterable[Extent | Rows]) -> ReadHandle:
        """Begin to read; tensors have no gaps and lie on the reader's device."""
        pieces = [piece for one in wanted for piece in self._cut(one)]
        ready = None
        if self.device.type == "cuda":  # the memory may still be in use by earlier work
            ready = torch.cuda.current_stream(self.device).record_event()
        handle = ReadHandle(len(pieces), sum(piece.size for piece in pieces), ready)
        for piece in pieces:
            self._pieces.put((handle, piece))
        return handle

    def _cut(self, wanted: Extent | Rows) -> Iterator[_Piece]:
        path, offset, most = wanted.path, wanted.offset, self._piece_bytes
        if isinstance(wanted, Extent):
            flat = wanted.into.view(-1).view(torch.uint8)
            for at in range(0, flat.numel(), most):
                part = flat[at : at + most]
                yield _Piece(path, offset + at, part.numel(), into=part)
        elif wanted.row_bytes:
            step = max(1, most // wanted.row_bytes)
            for first in range(0, wanted.count, step):
                size = min(step, wanted.count - first) * wanted.row_bytes
                at = offset + first * wanted.row_bytes
                yield _Piece(path, at, size, put=partial(wanted.put, first))

    def _work(self) -> None:
        with ExitStack() as stack:
            staging: _StagingBuffer | None = None
            while (task := self._pieces.get()) is not None:
                handle, piece = task
                try:
                    if self._dropped:
                        raise InterruptedError("reading was given up")
                    if handle.wanted:
                        handle.begin()
                        staging = staging or self._staging_buffer(stack)
                        staging.copy(piece, handle.ready)
                except BaseException as error:  # handed to whoever waits
                    handle.finish(error)
                else:
                    handle.finish()

    def _staging_buffer(self, stack: ExitStack) -> _StagingBuffer:
        if self.device.type == "cuda":  # or pinning would wake the first GPU too
            stack.enter_context(torch.cuda.device(self.device))
        return stack.enter_context(_StagingBuffer(self.device, self._piece_bytes, self._put_lock))


def _stop(reader: weakref.ref[Reader]) -> None:
    left = reader()
    if left is not None:
        left.stop()


class _PutLock:
    """Where rows are put, one thread at a time: what a `put` holds for a moment is held once."""

    def __init__(self, device: torch.device) -> None:
        self._lock = threading.Lock()
        self._stream = _stream(device)

    def put(self, put: Callable[[Tensor], None], data: Tensor) -> None:
        with self._lock, _on(self._stream):
            put(data)
            _synchronize(self._stream)


class _StagingBuffer:
    """What one thread reads with: buffers, open files and a stream of its own."""

    def __init__(self, device: torch.device, size: int, put_lock: _PutLock) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._stack = ExitStack()
        self._files: dict[Path, FileIO] = {}
        self._stream = _stream(device)
        self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._on_gpu)
        self._staged: Tensor | None = None
        self._put_lock = put_lock

    def __enter__(self) -> _StagingBuffer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def copy(self, piece: _Piece, ready: torch.cuda.Event | None) -> None:
        """File -> buffer -> device; the bytes are there, and put, when this returns."""
        if piece.size > self._buffer.numel():  # one row that is longer than a piece
            self._buffer = torch.empty(piece.size, dtype=torch.uint8, pin_memory=self._on_gpu)
            self._staged = None
        self._fill(self._bytes(piece.size), piece.path, piece.offset)
        with _on(self._stream):
            if self._stream is not None and ready is not None:
                self._stream.wait_event(ready)
            data = self._buffer[: piece.size]
            if piece.into is not None:
                piece.into.copy_(data, non_blocking=True)
            else:
                data = self._on_device(data)
            _synchronize(self._stream)
        if piece.put is not None:
            self._put_lock.put(piece.put, data)

    def _bytes(self, size: int) -> memoryview:
        numbers: Any = self._buffer.numpy()
        return memoryview(numbers)[:size]

    def _on_device(self, data: Tensor) -> Tensor:
        if not self._on_gpu:
            return data
        if self._staged is None:
            self._staged = torch.empty_like(self._buffer, device=self._device)
        return self._staged[: data.numel()].copy_(data, non_blocking=True)

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


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _synchronize(stream: torch.cuda.Stream | None) -> None:
    if stream is not None:
        stream.synchronize()
