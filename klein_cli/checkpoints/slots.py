"""Where the tensors of a checkpoint belong in a module, however the module holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


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


class WholeSlot:
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


class InPlace:
    """A slot that is filled already, and keeps its memory: what comes is copied into it."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self.shape = slot.shape
        self.floating = slot.floating

    def adopt(self, tensor: Tensor) -> None:
        self._slot.put(0, tensor)

    def room(self, dtype: torch.dtype) -> Tensor | None:
        return None

    def put(self, first: int, rows: Tensor) -> None:
        self._slot.put(first, rows)


class Collected:
    """A slot of no module: a `tensor` by itself, which rows that come in pieces make float32."""

    tensor: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.floating = True

    def adopt(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def room(self, dtype: torch.dtype) -> Tensor | None:
        self.tensor = torch.empty(self.shape, dtype=torch.float32)
        return None

    def put(self, first: int, rows: Tensor) -> None:
        self.tensor[first : first + rows.shape[0]] = rows


def slots_of(module: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[str, Slot]:
    """Every tensor of a module by its official name, in the module's order.

    Parameters become `dtype`; buffers become float32, unless they are whole numbers.
    """
    slots: dict[str, Slot] = {}
    for path, child in module.named_modules():
        if isinstance(child, Packed):
            above = path.rpartition(".")[0]
            names = {_joined(above, name): rows for name, rows in child.holds.items()}
            slots |= {name: _Rows(child, rows) for name, rows in names.items()}
            continue
        for name, _ in child.named_parameters(recurse=False):
            slots[_joined(path, name)] = WholeSlot(child, name, dtype, device)
        for name, buffer in child.named_buffers(recurse=False):
            if name not in child._non_persistent_buffers_set:
                kind = torch.float32 if buffer.is_floating_point() else None
                slots[_joined(path, name)] = WholeSlot(child, name, kind, device)
    return slots


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def allocate(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give the modules that hold tensors in a form of their own their memory."""
    for child in module.modules():
        if isinstance(child, Packed):
            child.allocate(device, dtype)
