"""Work on one token at a time: norms, modulation, gates, and their results in fp8.

Tensors are (B, tokens, width), their last axis without gaps. In fp8 a row has a scale of its own:
its largest value becomes 448, the largest that float8_e4m3fn has.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from klein_cli.optimize.kernels.options import options, row_options

FP8 = torch.float8_e4m3fn
_FP8_MAX: tl.constexpr = tl.constexpr(448.0)
_SMALLEST: tl.constexpr = tl.constexpr(1e-12)


@triton.jit
def _at(pointer, row, tokens, batch, token):
    """Where a row begins; `batch` and `token` are strides."""
    return pointer + (row // tokens) * batch + (row % tokens) * token


@triton.jit
def _scaled(largest, scales, row):
    """One over the scale of a row, which is stored."""
    scale = tl.maximum(largest, _SMALLEST) / _FP8_MAX
    tl.store(scales + row, scale)
    return 1.0 / scale


@triton.jit
def _store(out, scales, row, y, place, inside, QUANTISED: tl.constexpr):
    """A row `y`, zero where it is not `inside`."""
    if QUANTISED:
        y = y * _scaled(tl.max(tl.abs(y), axis=0), scales, row)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _modulate(
    x, shift, scale, out, scales, tokens, batch, token, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, QUANTISED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < WIDTH
    value = tl.load(_at(x, row, tokens, batch, token) + place, mask=inside, other=0.0)
    value = value.to(tl.float32)
    centred = tl.where(inside, value - tl.sum(value, axis=0) / WIDTH, 0.0)
    variance = tl.sum(centred * centred, axis=0) / WIDTH
    factor = 1.0 + tl.load(scale + place, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + place, mask=inside, other=0.0).to(tl.float32)
    y = centred * tl.rsqrt(variance + eps) * factor + offset
    _store(out + row * WIDTH, scales, row, y, place, inside, QUANTISED)


@triton.jit
def _rms_norm(
    x, weight, out, tokens, batch, token, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < WIDTH
    value = tl.load(_at(x, row, tokens, batch, token) + place, mask=inside, other=0.0)
    value = value.to(tl.float32)
    mean = tl.sum(value * value, axis=0) / WIDTH
    y = value * tl.rsqrt(mean + eps) * tl.load(weight + place, mask=inside).to(tl.float32)
    tl.store(out + row * WIDTH + place, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add_gated(x, gate, y, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < WIDTH
    kept = tl.load(x + row * WIDTH + place, mask=inside).to(tl.float32)
    added = tl.load(y + row * WIDTH + place, mask=inside).to(tl.float32)
    total = kept + tl.load(gate + place, mask=inside).to(tl.float32) * added
    tl.store(out + row * WIDTH + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _silu_times(gate, value, place, inside):
    a = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(value + place, mask=inside, other=0.0).to(tl.float32)
    return a * tl.sigmoid(a) * b


@triton.jit
def _gate(
    before, gate, value, out, tokens, before_batch, before_token, batch, token,
    WIDTH: tl.constexpr, INNER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inner = column - WIDTH
    gates, values = _at(gate, row, tokens, batch, token), _at(value, row, tokens, batch, token)
    y = _silu_times(gates, values, inner, (inner >= 0) & (inner < INNER))
    if WIDTH > 0:
        first = _at(before, row, tokens, before_batch, before_token)
        kept = tl.load(first + column, mask=inner < 0, other=0.0).to(tl.float32)
        y = tl.where(inner < 0, kept, y)
    target = out + row * (WIDTH + INNER) + column
    tl.store(target, y.to(out.dtype.element_ty), mask=inner < INNER)


@triton.jit
def _gate_fp8(
    before, gate, value, out, scales, tokens, before_batch, before_token, batch, token,
    WIDTH: tl.constexpr, INNER: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr, INNER_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, INNER_BLOCK)
    inside = place < INNER
    gates, values = _at(gate, row, tokens, batch, token), _at(value, row, tokens, batch, token)
    y = _silu_times(gates, values, place, inside)
    largest = tl.max(tl.abs(y), axis=0)
    target = out + row * (WIDTH + INNER)
    if WIDTH > 0:
        column = tl.arange(0, WIDTH_BLOCK)
        first = _at(before, row, tokens, before_batch, before_token)
        kept = tl.load(first + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        factor = _scaled(tl.maximum(largest, tl.max(tl.abs(kept), axis=0)), scales, row)
        kept = kept * factor
        tl.store(target + column, kept.to(out.dtype.element_ty), mask=column < WIDTH)
    else:
        factor = _scaled(largest, scales, row)
    tl.store(target + WIDTH + place, (y * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _quantise(
    x, out, scales, tokens, batch, token, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < WIDTH
    value = tl.load(_at(x, row, tokens, batch, token) + place, mask=inside, other=0.0)
    _store(out + row * WIDTH, scales, row, value.to(tl.float32), place, inside, True)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Layer norm without weights, times 1 + scale, plus shift, each of `width` values."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _modulate_into(x, shift, scale, eps, out, None)
    return out


def modulate_fp8(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`modulate`, in fp8 with a float32 scale a row: (B, tokens, width) and (B, tokens, 1)."""
    out, scales = _fp8(x.shape[:-1], x.shape[-1], x.device)
    _modulate_into(x, shift, scale, eps, out, scales)
    return out, scales


def _modulate_into(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, out: Tensor, scales: Tensor | None
) -> None:
    width = x.shape[-1]
    _without_gaps(shift, scale)
    block = triton.next_power_of_2(width)
    _modulate[(_rows(x),)](
        x, shift, scale, out, out if scales is None else scales, *_layout(x), eps,
        WIDTH=width, BLOCK=block, QUANTISED=scales is not None, **row_options(block),
    )  # fmt: skip


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = x.shape[-1]
    block = triton.next_power_of_2(width)
    _rms_norm[(_rows(x),)](
        x, weight, out, *_layout(x), eps, WIDTH=width, BLOCK=block, **row_options(block)
    )
    return out


def add_gated(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y, where gate has `width` values; x and y without gaps."""
    assert x.is_contiguous()
    assert y.is_contiguous()
    _without_gaps(gate)
    out, width = torch.empty_like(x), x.shape[-1]
    block = triton.next_power_of_2(width)
    _add_gated[(_rows(x),)](x, gate, y, out, WIDTH=width, BLOCK=block, **row_options(block))
    return out


def gated(gate: Tensor, value: Tensor, before: Tensor | None = None) -> Tensor:
    """silu(gate) * value, on the channels behind those of `before`."""
    width, inner = 0 if before is None else before.shape[-1], gate.shape[-1]
    shape = (*gate.shape[:-1], width + inner)
    out = torch.empty(shape, dtype=gate.dtype, device=gate.device)
    block = min(1024, triton.next_power_of_2(width + inner))
    grid = (_rows(gate), triton.cdiv(width + inner, block))
    _gate[grid](
        *_gate_pointers(gate, value, before), out, *_gate_layouts(gate, value, before),
        WIDTH=width, INNER=inner, BLOCK=block, **options(4),
    )  # fmt: skip
    return out


def gated_fp8(gate: Tensor, value: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`gated`, in fp8 with a float32 scale a row."""
    width, inner = 0 if before is None else before.shape[-1], gate.shape[-1]
    out, scales = _fp8(gate.shape[:-1], width + inner, gate.device)
    block = triton.next_power_of_2(inner)
    _gate_fp8[(_rows(gate),)](
        *_gate_pointers(gate, value, before), out, scales, *_gate_layouts(gate, value, before),
        WIDTH=width, INNER=inner, WIDTH_BLOCK=triton.next_power_of_2(max(width, 1)),
        INNER_BLOCK=block, **row_options(block),
    )  # fmt: skip
    return out, scales


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """x in fp8 with a float32 scale a row: (B, tokens, width) and (B, tokens, 1)."""
    out, scales = _fp8(x.shape[:-1], x.shape[-1], x.device)
    width = x.shape[-1]
    block = triton.next_power_of_2(width)
    _quantise[(_rows(x),)](
        x, out, scales, *_layout(x), WIDTH=width, BLOCK=block, **row_options(block)
    )
    return out, scales


def _gate_pointers(
    gate: Tensor, value: Tensor, before: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return gate if before is None else before, gate, value


def _gate_layouts(gate: Tensor, value: Tensor, before: Tensor | None) -> tuple[int, ...]:
    tokens, batch, token = _layout(gate)
    assert _layout(value) == (tokens, batch, token)
    _, before_batch, before_token = _layout(gate if before is None else before)
    return tokens, before_batch, before_token, batch, token


def _rows(x: Tensor) -> int:
    return x.shape[0] * x.shape[1]


def _layout(x: Tensor) -> tuple[int, int, int]:
    """Tokens in a row of the batch, and the strides of both."""
    assert x.ndim == 3
    assert x.stride(-1) == 1
    return x.shape[1], x.stride(0), x.stride(1)


def _without_gaps(*vectors: Tensor) -> None:
    """One value a channel, of however many axes."""
    assert all(v.numel() == v.shape[-1] and v.stride(-1) == 1 for v in vectors)


def _fp8(rows: torch.Size, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    values = torch.empty((*rows, width), dtype=FP8, device=device)
    return values, torch.empty((*rows, 1), dtype=torch.float32, device=device)
