"""A checkpoint -> a module's weights on the device, strictly checked, piece by piece.

The module is built on the meta device, without memory. Each tensor has a `Slot` in it, which takes
the tensor's rows as they come: a module that holds its weights quantised, or several of them as
one, takes them so, and no second copy ever exists. Only safetensors are read, never pickles.
Everything that can be known from the files' headers is checked before the first weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from klein_cli.checkpoints.reader import Extent, Reader, ReadHandle, Rows
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


@runtime_checkable
class Packed(Protocol):
    """A module that holds tensors of the checkpoint in a form of its own.

    `holds` names them, from the module's parent on, with the rows that each has in the whole
    `shape`. `allocate` gives the module its memory. `room` is memory that takes rows stored as
    `dtype` byte by byte, None if they must be `put`; `put` may run in several threads at once, for
    rows that do not overlap.
    """

    holds: Mapping[str, slice]
    shape: tuple[int, ...]

    def allocate(self, device: torch.device, dtype: torch.dtype) -> None: ...

    def room(self, rows: slice, dtype: torch.dtype) -> Tensor | None: ...

    def put(self, first: int, rows: Tensor) -> None: ...


class Slot(Protocol):
    """Where one tensor of a checkpoint belongs in a module.

    `shape` is the tensor's; `floating` whether it holds fractions. `adopt` takes the whole tensor,
    perhaps without a copy; `room` and `put` are those of `Packed`, in rows of the tensor.
    """

    shape: tuple[int, ...]
    floating: bool

    def adopt(self, tensor: Tensor) -> None: ...

    def room(self, dtype: torch.dtype) -> Tensor | None: ...

    def put(self, first: int, rows: Tensor) -> None: ...


class _Whole:
    """A parameter or a buffer of a module, by itself."""

    def __init__(
        self, module: nn.Module, name: str, dtype: torch.dtype | None, device: torch.device
    ) -> None:
        self._module = module
        self._name = name
        self._dtype = dtype
        self._device = device
        self._meta: Tensor = getattr(module, name)
        self.shape = tuple(self._meta.shape)
        self.floating = self._meta.is_floating_point()

    def adopt(self, tensor: Tensor) -> None:
        kept = tensor.to(self._dtype or tensor.dtype)
        self._set(kept.contiguous(memory_format=self._format))

    def room(self, dtype: torch.dtype) -> Tensor | None:
        # Not `empty_like`: an operation on the meta device imports torch's compiler.
        kept = torch.empty(
            self.shape,
            dtype=self._dtype or dtype,
            device=self._device,
            memory_format=self._format,
        )
        self._set(kept)
        return kept if kept.dtype == dtype and kept.is_contiguous() else None

    def put(self, first: int, rows: Tensor) -> None:
        kept: Tensor = getattr(self._module, self._name)
        if kept.ndim:
            kept = kept[first : first + rows.shape[0]]
        kept.copy_(rows.view(kept.shape))

    @property
    def _format(self) -> torch.memory_format:
        plain = self._meta.is_contiguous()
        return torch.contiguous_format if plain else torch.channels_last

    def _set(self, tensor: Tensor) -> None:
        if self._name in self._module._parameters:
            self._module._parameters[self._name] = nn.Parameter(tensor, requires_grad=False)
        else:
            self._module._buffers[self._name] = tensor


class _Rows:
    """A tensor that a `Packed` module holds."""

    def __init__(self, packed: Packed, rows: slice) -> None:
        self._packed = packed
        self._rows = rows
        self.shape = (rows.stop - rows.start, *packed.shape[1:])
        self.floating = True

    def adopt(self, tensor: Tensor) -> None:
        self.put(0, tensor)

    def room(self, dtype: torch.dtype) -> Tensor | None:
        return self._packed.room(self._rows, dtype)

    def put(self, first: int, rows: Tensor) -> None:
        self._packed.put(self._rows.start + first, rows)


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
    reader: Reader | None = None,
) -> tuple[ReadHandle | None, tuple[str, ...]]:
    """Fill a module that was made with `init_on_meta`.

    The checkpoint's names carry `prefix` before the module's own. Parameters become `dtype`;
    buffers hold statistics and become float32, unless they are whole numbers. Tensors for which
    `skip` is true need not exist and are not read. With a `reader`, one of this device, the weights
    are there when the returned handle is done; without, when this returns. Also returned: the
    names that were skipped. Raises ModelError naming any other tensor that is missing, not wanted
    or of another shape, and any file that is absent or cannot be read.
    """
    slots = {prefix + name: slot for name, slot in _slots(module, device, dtype).items()}
    stored = checkpoint.tensors()
    skipped = tuple(sorted(name for name in stored if skip(name)))
    for name, held in stored.items():
        if not skip(name):
            _check(name, held, slots.get(name))
    missing = [name for name in slots if name not in stored]
    if missing:
        raise ModelError(f"{checkpoint.place} lacks {_some(missing)}", DAMAGED)
    module.requires_grad_(False).eval()
    _allocate(module, device, dtype)
    wanted = [(stored[name], slot) for name, slot in slots.items()]
    handle = None
    if reader is None:
        _adopt(wanted, device)
    else:
        handle = reader.read(_wanted(held, slot) for held, slot in wanted)
    _check_complete(module)
    return handle, skipped


def _slots(module: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[str, Slot]:
    """Every tensor of a module by its official name, in the module's order."""
    slots: dict[str, Slot] = {}
    for path, child in module.named_modules():
        if isinstance(child, Packed):
            above = path.rpartition(".")[0]
            names = {_joined(above, name): rows for name, rows in child.holds.items()}
            slots |= {name: _Rows(child, rows) for name, rows in names.items()}
            continue
        for name, _ in child.named_parameters(recurse=False):
            slots[_joined(path, name)] = _Whole(child, name, dtype, device)
        for name, buffer in child.named_buffers(recurse=False):
            if name not in child._non_persistent_buffers_set:
                kind = torch.float32 if buffer.is_floating_point() else None
                slots[_joined(path, name)] = _Whole(child, name, kind, device)
    return slots


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _allocate(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    for child in module.modules():
        if isinstance(child, Packed):
            child.allocate(device, dtype)


def _adopt(wanted: Collection[tuple[Stored, Slot]], device: torch.device) -> None:
    """Fill the slots from files mapped into memory: on a CPU they are read as they are used."""
    files = {path: _mapped(path) for path in {held.path for held, _ in wanted}}
    for held, slot in wanted:
        flat = files[held.path][held.begin : held.end]
        dtype = _TYPES[held.dtype]
        if held.begin % dtype.itemsize:  # a header of odd length
            flat = flat.clone()
        slot.adopt(flat.view(dtype).view(held.shape).to(device))


def _mapped(path: Path) -> Tensor:
    """A file's bytes."""
    try:
        size = path.stat().st_size
        storage: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{path} cannot be read: {error}", DAMAGED) from None
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _wanted(held: Stored, slot: Slot) -> Extent | Rows:
    """What a reader is to bring for one tensor: bytes into their place, or rows that are put."""
    dtype = _TYPES[held.dtype]
    room = slot.room(dtype)
    if room is not None:
        return Extent(held.path, held.begin, room)
    count, rest = (held.shape[0], held.shape[1:]) if held.shape else (1, ())
    row_bytes = (held.end - held.begin) // max(count, 1)

    def put(first: int, data: Tensor) -> None:
        slot.put(first, data.view(dtype).view(-1, *rest))

    return Rows(held.path, held.begin, count, row_bytes, put)


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
