"""An adapter's factors -> rows of the weights that it changes, in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from klein_cli.checkpoints.lora.adapter import AdapterFile
from klein_cli.checkpoints.lora.layers import Factors, Layer
from klein_cli.checkpoints.source import Stored, check_unchanged
from klein_cli.errors import ModelError

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

Whole = Callable[[], Tensor]
"""All rows (out, in) float32 of what a layer changes, as they are before it does."""


class Delta:
    """What a layer does to its rows, times the user's `weight`. Factors are read when asked for.

    A DoRA of the weight s is lengths * (W + s * change) / |W + s * change|, as peft has it: the
    user's weight turns the rows, and how long they are in the end is as it was trained.
    """

    def __init__(self, file: AdapterFile, layer: Layer, weight: float) -> None:
        self._file = file
        self._layer = layer
        self._weight = weight
        self._read: dict[tuple[int, str], Tensor] = {}
        self._columns: Tensor | None = None

    def apply(self, rows: Tensor, first: int, whole: Whole) -> Tensor:
        """The rows (n, in) float32 of the layer from the number `first` on, changed.

        They may be written to. Raises ModelError when the file has changed or holds no numbers.
        """
        self._add(rows, first)
        if self._layer.norm is None:
            return rows
        lengths = self._tensor(-1, "norm", self._layer.norm, rows.device)
        if not self._layer.by_column:
            last = first + rows.shape[0]
            return rows * _ratio(lengths.view(-1, 1)[first:last], rows.norm(dim=1, keepdim=True))
        if self._columns is None:
            changed = whole().to(rows.device)
            self._add(changed, 0)
            self._columns = _ratio(lengths, changed.norm(dim=0, keepdim=True))
        return rows * self._columns

    def _add(self, rows: Tensor, first: int) -> None:
        """Add the factors' products to the rows that each of them is for."""
        begin = 0
        for number, factors in enumerate(self._layer.factors):
            end = begin + factors.shape[0]
            low, high = max(first, begin), min(first + rows.shape[0], end)
            if low < high:
                mine = rows[low - first : high - first]
                self._add_product(mine, number, factors, slice(low - begin, high - begin))
            begin = end

    def _add_product(self, rows: Tensor, number: int, factors: Factors, part: slice) -> None:
        scale = self._weight * factors.scale
        read = {
            role: self._tensor(number, role, held, rows.device)
            for role, held in factors.tensors.items()
        }
        if factors.kind == "LoRA":
            rows.addmm_(read["up"][part], read["down"], alpha=scale)
        else:
            rows.add_(_PRODUCTS[factors.kind](read, part), alpha=scale)

    def _tensor(self, number: int, role: str, held: Stored, device: torch.device) -> Tensor:
        found = self._read.get((number, role))
        if found is None:
            found = self._read[number, role] = read_factor(self._file, held).to(device)
        return found


def read_factor(file: AdapterFile, held: Stored) -> Tensor:
    """A tensor of an adapter in float32. Raises ModelError when it is not what it was, or NaN."""
    check_unchanged(file.path, file.stamp)
    try:
        with held.path.open("rb") as opened:
            opened.seek(held.begin)
            data = bytearray(opened.read(held.end - held.begin))
    except OSError as error:
        raise ModelError(f"{file.path} cannot be read: {error}", "put the adapter back") from None
    found = torch.frombuffer(data, dtype=_TYPES[held.dtype]).view(held.shape).float()
    if not bool(torch.isfinite(found).all()):
        raise ModelError(
            f"{file.path} holds numbers that are not finite",
            "its training failed, or the file is damaged: use another",
        )
    return found


def _ratio(wanted: Tensor, found: Tensor) -> Tensor:
    """What brings lengths to those that are wanted; what has no length has none afterwards."""
    return torch.where(found > 0, wanted / found, torch.zeros_like(found))


def _loha(read: Mapping[str, Tensor], part: slice) -> Tensor:
    first = read["hada_w1_a"][part] @ read["hada_w1_b"]
    return first * (read["hada_w2_a"][part] @ read["hada_w2_b"])


def _lokr(read: Mapping[str, Tensor], part: slice) -> Tensor:
    """Rows of the Kronecker product: row i * m + k of it is that of row i and, within, row k."""
    left, right = (_whole(read, name) for name in ("lokr_w1", "lokr_w2"))
    row = torch.arange(part.start, part.stop, device=left.device)
    height = right.shape[0]
    return (left[row // height][:, :, None] * right[row % height][:, None, :]).flatten(1)


def _whole(read: Mapping[str, Tensor], name: str) -> Tensor:
    return read[name] if name in read else read[f"{name}_a"] @ read[f"{name}_b"]


def _full(read: Mapping[str, Tensor], part: slice) -> Tensor:
    return read["diff"][part]


_PRODUCTS: Mapping[str, Callable[[Mapping[str, Tensor], slice], Tensor]] = {
    "LoHa": _loha,
    "LoKr": _lokr,
    "full": _full,
}
