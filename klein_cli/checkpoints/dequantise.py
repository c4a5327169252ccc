"""Packed rows -> numbers, in float32 on their device: fp8, nvfp4 and int8 as safetensors hold them.

The kinds have the names that `kinds` gives; those of GGUF are in `ggml`. Sources: ComfyUI's and
BFL's layouts, and transformers' for fp8 in blocks. Rows are unpacked by themselves, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from klein_cli.checkpoints.source import Stored

_AT_ONCE = 1 << 22
"""Numbers unpacked at a time: with all that lies in between they take some hundred megabytes."""
_TILE = 128
_NVFP4_BLOCK = 16

DTYPES = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
}


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as they are stored: (n, bytes) uint8, which are `columns` numbers each.

    `dtype` is of what the bytes are; `first` the first row's number among those to which the
    `companions` belong; `group` is that of `source.Packing`.
    """

    data: Tensor
    columns: int
    dtype: torch.dtype
    first: int
    companions: Mapping[str, Tensor]
    group: int

    @property
    def numbers(self) -> slice:
        """Of which number the rows are."""
        return slice(self.first, self.first + len(self.data))


Kind = Callable[[Rows], Tensor]
"""Rows -> (n, columns) float32."""


def unpacked(
    held: Stored, companions: Mapping[str, Tensor], first: int, data: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Bytes (n,) uint8 of a tensor's rows -> the rows, some at a time: (k, ...) float32.

    `first` is the number of the first among the stored rows of `held`; before each come how many of
    them came before. Companions are whole, and on the device of the bytes.
    """
    assert held.packing is not None
    unpack = _kind(held.packing.kind)
    columns = prod(held.shape[1:])
    step = max(1, _AT_ONCE // max(columns, 1))
    for number, part in enumerate(torch.split(data.view(-1, held.row_bytes), step)):
        rows = Rows(
            data=part,
            columns=columns,
            dtype=DTYPES.get(held.dtype, torch.uint8),
            first=held.packing.row + first + number * step,
            companions=companions,
            group=held.packing.group,
        )
        yield number * step, unpack(rows).view(-1, *held.shape[1:])


def companion(held: Stored, data: Tensor) -> Tensor:
    """A companion's bytes (n,) uint8 -> the tensor, as it is stored."""
    return data.view(DTYPES[held.dtype]).view(held.shape)


def _kind(name: str) -> Kind:
    if name in _KINDS:
        return _KINDS[name]
    from klein_cli.checkpoints.ggml import kind

    return kind(name)


def _fp8(rows: Rows) -> Tensor:
    """A scale for all, for each row, or none."""
    values = rows.data.view(rows.dtype).float()
    scale = rows.companions.get("scale")
    return values if scale is None else values * _of_rows(scale, rows)


def _fp8_groups(rows: Rows) -> Tensor:
    """A scale for each group of columns in each row: (N, groups, 1)."""
    scale = rows.companions["scale"][rows.numbers].float()
    values = rows.data.view(rows.dtype).float()
    return (values.view(*scale.shape[:2], -1) * scale).view(values.shape)


def _fp8_blocks(rows: Rows) -> Tensor:
    """A scale for each tile of 128 rows and 128 columns."""
    scale = rows.companions["scale"].float()
    lines = torch.arange(rows.numbers.start, rows.numbers.stop, device=scale.device) // _TILE
    wide = scale[lines].repeat_interleave(_TILE, dim=1)[:, : rows.columns]
    return rows.data.view(rows.dtype).float() * wide


def _int8(rows: Rows) -> Tensor:
    return rows.data.view(torch.int8).float() * _of_rows(rows.companions["scale"], rows)


def _int8_rotated(rows: Rows) -> Tensor:
    """As int8; then each group of columns is turned back, by a symmetric Hadamard matrix."""
    grouped = _int8(rows).view(-1, rows.group)
    turned = grouped @ _hadamard(rows.group).to(grouped.device)
    return turned.view(len(rows.data), -1)


def _nvfp4(rows: Rows) -> Tensor:
    """The even column is in the high half of a byte; the scales are swizzled.

    They lie in tiles of 128 rows and 4 blocks, in which row r and block c are at
    (r % 32) * 16 + (r // 32) * 4 + c.
    """
    scale = rows.companions["scale"]
    blocks, tiles = rows.columns // _NVFP4_BLOCK, scale.shape[1] // 4
    r = torch.arange(rows.numbers.start, rows.numbers.stop, device=scale.device)[:, None]
    c = torch.arange(blocks, device=scale.device)
    tile = (r // 128 * tiles + c // 4) * 512
    places = tile + r % 32 * 16 + r % 128 // 32 * 4 + c % 4
    return _fp4(rows, scale.view(-1).view(torch.uint8)[places], high_first=True)


def _nvfp4_linear(rows: Rows) -> Tensor:
    """diffusers': the even column is in the low half of a byte, and scales are in order."""
    scale = rows.companions["scale"][rows.numbers]
    return _fp4(rows, scale.view(torch.uint8), high_first=False)


def _fp4(rows: Rows, scales: Tensor, *, high_first: bool) -> Tensor:
    """`scales` (n, blocks) are the bytes of fp8 numbers."""
    pairs = _e2m1_pairs(high_first).to(rows.data.device)
    values = pairs[rows.data.int()].view(*scales.shape, _NVFP4_BLOCK)
    scale = scales.view(torch.float8_e4m3fn).float() * rows.companions["scale_2"].view(())
    return (values * scale[..., None]).view(len(rows.data), -1)


def _of_rows(scale: Tensor, rows: Rows) -> Tensor:
    """One scale for all, or (n, 1)."""
    if scale.numel() == 1:
        return scale.float().view(())
    return scale.view(-1, 1)[rows.numbers].float()


@cache
def _e2m1_pairs(high_first: bool) -> Tensor:
    """The two numbers (256, 2) that each byte holds, in the order of the columns."""
    half = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    values = torch.cat((half, -half))
    codes = torch.arange(256)
    low, high = values[codes & 15], values[codes >> 4]
    return torch.stack((high, low) if high_first else (low, high), dim=1)


@cache
def _hadamard(size: int) -> Tensor:
    """Orthonormal and symmetric; `size` is a power of 4."""
    four = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    whole = torch.ones(1, 1)
    while len(whole) < size:
        whole = torch.kron(whole, four)
    return torch.div(whole, size**0.5)


_KINDS: dict[str, Kind] = {
    "fp8": _fp8,
    "fp8 groups": _fp8_groups,
    "fp8 blocks": _fp8_blocks,
    "int8": _int8,
    "int8 rotated": _int8_rotated,
    "nvfp4": _nvfp4,
    "nvfp4 linear": _nvfp4_linear,
}
