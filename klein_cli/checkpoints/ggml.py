"""GGUF's packed rows -> numbers, in float32 on their device.

Each block is a few numbers of 16 bits, scales in few bits, and codes; fields are named as in ggml,
whose layouts these are. What is computed is rounded as ggml's reference rounds it, so that both
agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from klein_cli.checkpoints.dequantise import Kind, Rows
from klein_cli.checkpoints.gguf import PACKED

Unpack = Callable[[Tensor], Tensor]
"""Blocks (n, bytes) uint8 -> (n, ...) float32, the numbers of each in order."""

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def kind(name: str) -> Kind:
    """How rows of one of GGUF's types are unpacked; rare types by the package `gguf`, on a CPU."""
    unpack = _UNPACK.get(name)
    if unpack is None:
        return lambda rows: _by_package(name, rows)
    size = next(each.size for each in PACKED.values() if each.name == name)
    return lambda rows: unpack(rows.data.view(-1, size)).view(len(rows.data), rows.columns)


def _by_package(name: str, rows: Rows) -> Tensor:
    import gguf

    numbers: Any = gguf.quants.dequantize(rows.data.cpu().numpy(), gguf.GGMLQuantizationType[name])
    return torch.from_numpy(numbers).to(rows.data.device, torch.float32)


def _halves(blocks: Tensor, at: int) -> Tensor:
    """A number of 16 bits in each block: (n, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _bits(data: Tensor, shifts: range, mask: int, group: int) -> Tensor:
    """(n, bytes) -> (n, groups, shifts, group): of each group of bytes the bits at every shift."""
    steps = torch.tensor(list(shifts), dtype=torch.uint8, device=data.device)
    return (data.reshape(len(data), -1, 1, group) >> steps.view(-1, 1)) & mask


_NIBBLES, _PAIRS, _SINGLES = range(0, 8, 4), range(0, 8, 2), range(8)


def _q4(blocks: Tensor) -> Tensor:
    """The low halves of 16 bytes, then the high ones: (n, 32)."""
    return _bits(blocks[:, -16:], _NIBBLES, 15, 16).flatten(1)


def _q4_0(blocks: Tensor) -> Tensor:
    return _halves(blocks, 0) * (_q4(blocks).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _halves(blocks, 0) * _q4(blocks).float() + _halves(blocks, 2)


def _q5(blocks: Tensor, at: int) -> Tensor:
    """As `_q4`, with a fifth bit each, from `at` on."""
    bits = _bits(blocks[:, at : at + 4], _SINGLES, 1, 1).flatten(1)
    return (_q4(blocks) | (bits << 4)).float()


def _q5_0(blocks: Tensor) -> Tensor:
    return _halves(blocks, 0) * (_q5(blocks, 2) - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    return _halves(blocks, 0) * _q5(blocks, 4) + _halves(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float() * _halves(blocks, 0)


def _q2_k(blocks: Tensor) -> Tensor:
    scales, d, dmin = blocks[:, :16], _halves(blocks, 80), _halves(blocks, 82)
    codes = _bits(blocks[:, 16:80], _PAIRS, 3, 32).reshape(-1, 16, 16).float()
    dl, ml = d * (scales & 15).float(), dmin * (scales >> 4).float()
    return dl[..., None] * codes - ml[..., None]


def _q3_k(blocks: Tensor) -> Tensor:
    high = _bits(blocks[:, :32], _SINGLES, 1, 32).reshape(-1, 16, 16)
    low = _bits(blocks[:, 32:96], _PAIRS, 3, 32).reshape(-1, 16, 16)
    codes = low.float() - ((high ^ 1) << 2).float()
    low_scales = _bits(blocks[:, 96:104], _NIBBLES, 15, 8).flatten(1)
    high_scales = _bits(blocks[:, 104:108], _PAIRS, 3, 4).flatten(1)
    scales = (low_scales | (high_scales << 4)).float() - 32
    return (_halves(blocks, 108) * scales)[..., None] * codes


def _scales_and_mins(packed: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes -> 8 scales and 8 minima of 6 bits each, (n, 8) float32."""
    d, m, md = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((d & 63, (md & 15) | ((d >> 2) & 48)), dim=1)
    mins = torch.cat((m & 63, (md >> 4) | ((m >> 2) & 48)), dim=1)
    return scales.float(), mins.float()


def _with_mins(blocks: Tensor, codes: Tensor) -> Tensor:
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    d, dm = _halves(blocks, 0) * scales, _halves(blocks, 2) * mins
    return d[..., None] * codes.float() - dm[..., None]


def _q4_k(blocks: Tensor) -> Tensor:
    return _with_mins(blocks, _bits(blocks[:, 16:], _NIBBLES, 15, 32).reshape(-1, 8, 32))


def _q5_k(blocks: Tensor) -> Tensor:
    low = _bits(blocks[:, 48:], _NIBBLES, 15, 32).reshape(-1, 8, 32)
    high = _bits(blocks[:, 16:48], _SINGLES, 1, 32).reshape(-1, 8, 32)
    return _with_mins(blocks, low | (high << 4))


def _q6_k(blocks: Tensor) -> Tensor:
    low = _bits(blocks[:, :128], _NIBBLES, 15, 64).reshape(-1, 16, 16)
    high = _bits(blocks[:, 128:192], _PAIRS, 3, 32).reshape(-1, 16, 16)
    codes = (low | (high << 4)).float() - 32
    scales = blocks[:, 192:208].view(torch.int8).float()
    return (_halves(blocks, 208) * scales)[..., None] * codes


def _iq4(codes: Tensor) -> Tensor:
    return torch.tensor(_IQ4, dtype=torch.float32, device=codes.device)[codes.int()]


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _halves(blocks, 0) * _iq4(_q4(blocks))


def _iq4_xs(blocks: Tensor) -> Tensor:
    low = _bits(blocks[:, 4:8], _NIBBLES, 15, 1).flatten(1)
    high = _bits(blocks[:, 2:4], _PAIRS, 3, 1).flatten(1)
    scales = (low | (high << 4)).float() - 32
    codes = _bits(blocks[:, 8:], _NIBBLES, 15, 16).reshape(-1, 8, 32)
    return (_halves(blocks, 0) * scales)[..., None] * _iq4(codes)


_UNPACK: dict[str, Unpack] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
