"""A checkpoint -> a module's weights on the device, strictly checked, piece by piece.

The module is built on the meta device, without memory. Each tensor has a `Slot` in it, which takes
the tensor's rows as they come: a module that holds its weights quantised, or several of them as
one, takes them so, and no second copy ever exists. Packed weights are unpacked on the way.
Everything that can be known from the files' headers is checked before the first weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from klein_cli.checkpoints.dequantise import companion, unpacked
from klein_cli.checkpoints.reader import PIECE_BYTES, Extent, Reader, ReadHandle, Rows
from klein_cli.checkpoints.slots import Collected, InPlace, Slot, allocate, slots_of
from klein_cli.checkpoints.source import DAMAGED, Checkpoint, Span, Stored
from klein_cli.errors import ModelError

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Packed tensors are not stored in any of these: what they hold is unpacked to float32."""

_ALIGNMENT = max(dtype.itemsize for dtype in _TYPES.values())

Change = Callable[[int, Tensor], Tensor]
"""Number of the first row, and rows of a tensor in float32 on the device -> what is kept of them.

It is called by one thread at a time, in any order of rows, and may write to what it is given.
"""


class _Unfilled(TorchFunctionMode):
    """Leaves out the initial values of modules.

    On the meta device they come to nothing, and the first random one imports torch's compiler,
    which takes a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def init_on_meta() -> Iterator[None]:
    """Modules made in here have shapes, but neither memory nor values: see `load_weights`."""
    with torch.device("meta"), _Unfilled():
        yield


def load_weights(
    module: nn.Module,
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    prefix: str = "",
    skip: Callable[[str], bool] = lambda name: False,
    changes: Mapping[str, Change] = MappingProxyType({}),
    reader: Reader | None = None,
) -> tuple[ReadHandle | None, tuple[str, ...]]:
    """Fill a module that was made with `init_on_meta`.

    The checkpoint's names carry `prefix` before the module's own. Parameters become `dtype`;
    buffers hold statistics and become float32, unless they are whole numbers. Tensors for which
    `skip` is true need not exist and are not read. Where `changes` names a tensor, its rows are
    changed as they come, before they are rounded to `dtype`. With a `reader`, one of this device,
    the weights are there when the returned handle is done; without, when this returns. Also
    returned: the names that were skipped. Raises ModelError naming any other tensor that is
    missing, not wanted or of another shape, and any file that is absent or cannot be read.
    """
    slots = {prefix + name: slot for name, slot in slots_of(module, device, dtype).items()}
    assert changes.keys() <= slots.keys()
    stored = checkpoint.tensors()
    skipped = tuple(sorted(name for name in stored if skip(name)))
    for name, held in stored.items():
        if not skip(name):
            _check(name, held, slots.get(name))
    missing = [name for name in slots if name not in stored]
    if missing:
        raise ModelError(f"{checkpoint.place} lacks {_some(missing)}", DAMAGED)
    module.requires_grad_(False).eval()
    allocate(module, device, dtype)
    wanted = [_Arrival(stored[name], slot, changes.get(name)) for name, slot in slots.items()]
    handle = _bring(wanted, device, reader)
    _check_complete(module)
    return handle, skipped


def put_again(
    module: nn.Module,
    checkpoint: Checkpoint,
    names: Collection[str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    changes: Mapping[str, Change],
    prefix: str = "",
    reader: Reader | None = None,
) -> ReadHandle | None:
    """Read some tensors of a filled module again, with other `changes` or none.

    They come into the memory that they are in, so that whoever reads it, as a CUDA graph does,
    goes on; nobody may compute with the module meanwhile. The rest is as in `load_weights`.
    """
    slots = {prefix + name: slot for name, slot in slots_of(module, device, dtype).items()}
    stored = checkpoint.tensors()
    wanted = [_Arrival(stored[name], InPlace(slots[name]), changes.get(name)) for name in names]
    return _bring(wanted, device, reader)


def read_tensor(held: Stored) -> Tensor:
    """All of one tensor, on the host, as it is stored. Raises ModelError."""
    found = Collected(held.shape)
    _adopt([_Arrival(held, found, None)], torch.device("cpu"))
    return found.tensor


def read_tensors(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, unpacked and on the host, fractions in `dtype`.

    Raises ModelError for a file that is absent or cannot be read.
    """
    for name, held in checkpoint.tensors().items():
        found = read_tensor(held)
        yield name, found.to(dtype if found.is_floating_point() else found.dtype, copy=True)


@dataclass(slots=True)
class _Arrival:
    """One tensor on its way: how it is stored, where it belongs, and what changes it."""

    held: Stored
    slot: Slot
    change: Change | None

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows as they are put, if nothing changes them."""
        return torch.float32 if self.held.packing else _TYPES[self.held.dtype]

    @property
    def as_stored(self) -> bool:
        """Whether its bytes are put as they are."""
        return self.held.packing is None and self.change is None

    def wanted(self, reader: Reader) -> Iterator[Extent | Rows]:
        """What a reader is to bring: bytes into their place, or rows that are put."""
        held, room = self.held, self.slot.room(self.dtype)
        companions = self._coming(reader)
        for span in held.spans:
            rows = (span.end - span.begin) // max(held.row_bytes, 1)
            if room is not None and self.as_stored:
                into = room[span.first : span.first + rows] if room.ndim else room
                yield Extent(held.path, span.begin, into)
            else:
                put = partial(self.put, span, companions)
                yield Rows(held.path, span.begin, rows, held.row_bytes, put)

    def adopt(self, files: Mapping[Path, Tensor], device: torch.device) -> None:
        """Take the tensor from files mapped into memory: without a copy where that can be."""
        held = self.held
        if self.as_stored and not held.turned:
            data = _aligned(files[held.path][held.begin : held.end], held.begin)
            self.slot.adopt(data.view(self.dtype).view(held.shape).to(device))
            return
        self.slot.room(self.dtype)
        companions = {
            name: companion(each, _aligned(files[each.path][each.begin : each.end], each.begin))
            for name, each in self._companions.items()
        }
        row_bytes = max(held.row_bytes, 1)
        step = max(1, PIECE_BYTES // row_bytes) * row_bytes
        for span in held.spans:
            data = files[held.path][span.begin : span.end]
            for at in range(0, len(data), step):
                piece = _aligned(data[at : at + step], span.begin + at)
                self.put(span, lambda: companions, at // row_bytes, piece)

    def put(
        self, span: Span, companions: Callable[[], Mapping[str, Tensor]], first: int, data: Tensor
    ) -> None:
        """Put rows of a span, from its row `first` on, given as bytes (n,) uint8."""
        held = self.held
        if held.packing is None:
            rows = data.view(self.dtype).view(-1, *held.shape[1:])
            self._put(span.first + first, rows)
            return
        stored = (span.begin - held.begin) // max(held.row_bytes, 1) + first
        for at, rows in unpacked(held, companions(), stored, data):
            self._put(span.first + first + at, rows)

    def _put(self, first: int, rows: Tensor) -> None:
        if self.change is not None:
            wide = torch.promote_types(self.dtype, torch.float32)
            rows = self.change(first, rows.to(wide, copy=self.held.packing is None))
        self.slot.put(first, rows)

    @property
    def _companions(self) -> Mapping[str, Stored]:
        return self.held.packing.companions if self.held.packing else {}

    def _coming(self, reader: Reader) -> Callable[[], Mapping[str, Tensor]]:
        """The companions, which are read before any row is: whoever asks waits for them."""
        if not self._companions:
            return dict
        data = {
            name: torch.empty(each.end - each.begin, dtype=torch.uint8, device=reader.device)
            for name, each in self._companions.items()
        }
        extents = (Extent(e.path, e.begin, data[name]) for name, e in self._companions.items())
        handle = reader.read(extents)

        def come() -> Mapping[str, Tensor]:
            handle.wait()
            return {name: companion(e, data[name]) for name, e in self._companions.items()}

        return come


def _bring(
    wanted: Collection[_Arrival], device: torch.device, reader: Reader | None
) -> ReadHandle | None:
    """Fill the slots: now, or by the reader's threads."""
    if reader is None:
        _adopt(wanted, device)
        return None
    return reader.read(piece for one in wanted for piece in one.wanted(reader))


def _adopt(wanted: Collection[_Arrival], device: torch.device) -> None:
    """Fill the slots from files mapped into memory: on a CPU they are read as they are used."""
    files = {path: _mapped(path) for path in {one.held.path for one in wanted}}
    for one in wanted:
        one.adopt(files, device)


def _aligned(data: Tensor, offset: int) -> Tensor:
    """Bytes that can be viewed as any dtype: a header may have an odd length."""
    return data.clone() if offset % _ALIGNMENT else data


def _mapped(path: Path) -> Tensor:
    """A file's bytes."""
    try:
        size = path.stat().st_size
        storage: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{path} cannot be read: {error}", DAMAGED) from None
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _check(name: str, held: Stored, slot: Slot | None) -> None:
    if slot is None:
        raise ModelError(
            f"{held.path} holds {name}, which this model has no place for",
            "the weights and their configuration do not belong together",
        )
    if held.shape != slot.shape:
        raise ModelError(
            f"{held.path}: {name} has shape {held.shape}, not {slot.shape}",
            "the weights and their configuration do not belong together",
        )
    if held.packing is not None and slot.floating:
        return
    dtype = _TYPES.get(held.dtype)
    if held.packing is not None or dtype is None or dtype.is_floating_point != slot.floating:
        raise ModelError(
            f"{held.path}: {name} is stored as {held.dtype}, which klein cannot read",
            "get the model in bfloat16, float16 or float32",
        )


def _check_complete(module: nn.Module) -> None:
    """Buffers outside the state dict are nobody's tensors: they would stay without memory."""
    places = chain(module.named_parameters(), module.named_buffers())
    left = [name for name, tensor in places if tensor.is_meta]
    if left:
        raise RuntimeError(f"{type(module).__name__} has no values for {_some(left)}")


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
