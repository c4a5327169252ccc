"""A checkpoint -> a module's weights on the device, strictly checked, piece by piece.

The module is built on the meta device, without memory. Each tensor has a `Slot` in it, which takes
the tensor's rows as they come: a module that holds its weights quantised, or several of them as
one, takes them so, and no second copy ever exists. Only safetensors are read, never pickles.
Everything that can be known from the files' headers is checked before the first weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from klein_cli.checkpoints.reader import PIECE_BYTES, Extent, Reader, ReadHandle, Rows
from klein_cli.checkpoints.slots import Collected, InPlace, Slot, allocate, slots_of
from klein_cli.checkpoints.source import DAMAGED, Checkpoint, Stored
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


@dataclass(frozen=True, slots=True)
class _Arrival:
    """One tensor on its way: how it is stored, where it belongs, and what changes it."""

    held: Stored
    slot: Slot
    change: Change | None

    @property
    def dtype(self) -> torch.dtype:
        return _TYPES[self.held.dtype]

    @property
    def count(self) -> int:
        """Rows; a number by itself is one."""
        return self.held.shape[0] if self.held.shape else 1

    @property
    def row_bytes(self) -> int:
        return (self.held.end - self.held.begin) // max(self.count, 1)

    def wanted(self) -> Extent | Rows:
        """What a reader is to bring: bytes into their place, or rows that are put."""
        room = self.slot.room(self.dtype)
        if room is not None and self.change is None:
            return Extent(self.held.path, self.held.begin, room)
        return Rows(self.held.path, self.held.begin, self.count, self.row_bytes, self.put)

    def adopt(self, data: Tensor, device: torch.device) -> None:
        """Take the tensor's bytes, (n,) uint8 on the host: without a copy where that can be."""
        if self.held.begin % self.dtype.itemsize:  # a header of odd length
            data = data.clone()
        if self.change is None:
            self.slot.adopt(data.view(self.dtype).view(self.held.shape).to(device))
            return
        self.slot.room(self.dtype)
        row_bytes = max(self.row_bytes, 1)
        step = max(1, PIECE_BYTES // row_bytes) * row_bytes
        for at in range(0, len(data), step):
            self.put(at // row_bytes, data[at : at + step].to(device))

    def put(self, first: int, data: Tensor) -> None:
        """Put rows, given as bytes (n,) uint8."""
        rows = data.view(self.dtype).view(-1, *self.held.shape[1:])
        if self.change is not None:
            wide = rows.to(torch.promote_types(self.dtype, torch.float32), copy=True)
            rows = self.change(first, wide)
        self.slot.put(first, rows)


def _bring(
    wanted: Collection[_Arrival], device: torch.device, reader: Reader | None
) -> ReadHandle | None:
    """Fill the slots: now, or by the reader's threads."""
    if reader is None:
        _adopt(wanted, device)
        return None
    return reader.read(one.wanted() for one in wanted)


def _adopt(wanted: Collection[_Arrival], device: torch.device) -> None:
    """Fill the slots from files mapped into memory: on a CPU they are read as they are used."""
    files = {path: _mapped(path) for path in {one.held.path for one in wanted}}
    for one in wanted:
        one.adopt(files[one.held.path][one.held.begin : one.held.end], device)


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
    dtype = _TYPES.get(held.dtype)
    if dtype is None or dtype.is_floating_point != slot.floating:
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
