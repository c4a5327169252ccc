"""The Triton kernels against plain torch: on a GPU, or on the CPU in Triton's interpreter.

The interpreter has to be asked for before Triton is imported: test_interpreted.py runs this file
with it, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from interpreted import DEVICE, FP8, MARKS, _rounding_that_carries
from torch import Tensor

pytestmark = MARKS
__all__ = ["_rounding_that_carries"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}
"""Relative error that one rounding makes, measured 1.7e-3 and 2.1e-4, or float32 arithmetic."""


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return drawn.to(DEVICE, dtype)


def close(found: Tensor, wanted: Tensor, limit: float) -> None:
    """Relative, in norms, and no single value far off."""
    found, wanted = found.double(), wanted.double()
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= limit * wanted.norm()
    assert (found - wanted).abs().max() <= 16 * limit * wanted.abs().max()


def view(x: Tensor) -> Tensor:
    """The same values as a slice of something wider and longer."""
    wide = torch.zeros(x.shape[0], x.shape[1] + 3, x.shape[2] + 32, dtype=x.dtype, device=x.device)
    wide[:, 2:-1, 16:-16] = x
    return wide[:, 2:-1, 16:-16]


def dequantised(values: Tensor, scales: Tensor) -> Tensor:
    assert values.dtype == FP8
    assert scales.shape == (*values.shape[:-1], 1)
    return values.to(torch.float32) * scales


def close_in_fp8(found: tuple[Tensor, Tensor], wanted: Tensor) -> None:
    """Three bits behind the point: half a step is 1/16 of a value, and of its row's 448th."""
    got = dequantised(*found)
    largest = wanted.abs().amax(-1, keepdim=True)
    assert torch.allclose(found[1], largest.clamp(min=1e-12) / 448, rtol=1e-2, atol=0)
    assert ((got - wanted).abs() <= wanted.abs() / 15 + largest / 448 / 500).all()
    assert (got - wanted).norm() <= 0.03 * wanted.norm()


WIDTHS = (48, 128, 200)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    x, shift, scale = x.float(), shift.float(), scale.float()
    return (1 + scale) * F.layer_norm(x, x.shape[-1:], eps=1e-6) + shift


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("layout", [torch.clone, view])
def test_modulate(dtype: torch.dtype, width: int, layout: Callable[[Tensor], Tensor]) -> None:
    from klein_cli.optimize.kernels.norms import modulate, modulate_fp8

    x = layout(randn(2, 3, width, dtype=dtype) * 4 + 7)  # a mean that counts
    mods = randn(1, 1, 3 * width, dtype=dtype)
    shift, scale, _ = mods.chunk(3, dim=-1)
    wanted = modulated(x, shift, scale)
    close(modulate(x, shift, scale, 1e-6), wanted, ROUNDING[dtype])
    close_in_fp8(modulate_fp8(x, shift, scale, 1e-6), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(dtype: torch.dtype, width: int) -> None:
    from klein_cli.optimize.kernels.norms import rms_norm

    x, weight = view(randn(2, 3, width, dtype=dtype) * 5), randn(width, dtype=dtype)
    wanted = F.rms_norm(x.float(), (width,), weight.float(), 1e-6)
    close(rms_norm(x, weight, 1e-6), wanted, ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_add_gated(dtype: torch.dtype, width: int) -> None:
    from klein_cli.optimize.kernels.norms import add_gated

    x, y = randn(2, 3, width, dtype=dtype), randn(2, 3, width, dtype=dtype, seed=1)
    gate = randn(1, 1, 2 * width, dtype=dtype)[..., width:]
    wanted = x.float() + gate.float() * y.float()
    close(add_gated(x, gate, y), wanted, ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "inner", "louder"), [(0, 48, 1), (64, 192, 1), (48, 1100, 50)])
def test_gated(dtype: torch.dtype, width: int, inner: int, louder: float) -> None:
    """In fp8 the largest value of a row is in either part."""
    from klein_cli.optimize.kernels.norms import gated, gated_fp8

    both = randn(2, 3, 2 * inner + 16, dtype=dtype) * 3
    gate, value = both[..., 16:].chunk(2, dim=-1)
    before = view(randn(2, 3, width, dtype=dtype, seed=1) * louder) if width else None
    wanted = F.silu(gate.float()) * value.float()
    if before is not None:
        wanted = torch.cat((before.float(), wanted), dim=-1)
    close(gated(gate, value, before), wanted, ROUNDING[dtype])
    close_in_fp8(gated_fp8(gate, value, before), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantised(dtype: torch.dtype) -> None:
    from klein_cli.optimize.kernels.norms import quantised

    x = view(randn(2, 4, 48, dtype=dtype) * torch.tensor([1e-3, 1.0, 50.0, 0.0], device=DEVICE)
             .to(dtype)[:, None])  # fmt: skip
    close_in_fp8(quantised(x), x.float())
    close_in_fp8(quantised(x[:, 1:3]), x[:, 1:3].float())


def turned(x: Tensor, weight: Tensor, rotary: tuple[Tensor, Tensor], halves: bool) -> Tensor:
    """(B, tokens, heads * size), head by head as complex numbers in float64."""
    size = len(weight)
    heads = x.double().unflatten(-1, (-1, size))
    heads = heads * (heads.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()
    pairs = (
        heads.unflatten(-1, (2, -1)).transpose(-1, -2) if halves else heads.unflatten(-1, (-1, 2))
    )
    c, s = (table.double().unflatten(-1, (2, -1))[..., 0, :] if halves
            else table.double()[..., ::2] for table in rotary)  # fmt: skip
    out = torch.view_as_complex(pairs.contiguous()) * torch.complex(c, s)
    out = torch.view_as_real(out)
    out = out.transpose(-1, -2) if halves else out
    return out.flatten(-2).flatten(-2)


def tables(tokens: int, size: int, halves: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angle = randn(tokens, 1, size // 2) * 3
    angle = torch.cat((angle, angle), -1) if halves else angle.repeat_interleave(2, -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(("size", "queries", "keys"), [(16, 3, 3), (32, 8, 2), (128, 16, 8)])
def test_heads_are_turned_in_place(
    dtype: torch.dtype, halves: bool, size: int, queries: int, keys: int
) -> None:
    from klein_cli.optimize.kernels.qk_norm_rope import norm_and_rotate

    tokens, sizes = 5, (queries * size, keys * size, keys * size, 48)
    whole = randn(2, tokens, sum(sizes), dtype=dtype) * 3
    before = whole.clone()
    query, key, *_ = whole.split(sizes, dim=-1)
    weights = randn(size, dtype=dtype), randn(size, dtype=dtype, seed=1)
    rotary = tables(tokens, size, halves, torch.float32)
    norm_and_rotate(query, key, weights, rotary, 1e-6, halves=halves)
    old = before.split(sizes, dim=-1)
    close(query, turned(old[0], weights[0], rotary, halves), ROUNDING[dtype])
    close(key, turned(old[1], weights[1], rotary, halves), ROUNDING[dtype])
    assert torch.equal(whole[..., sum(sizes[:2]) :], before[..., sum(sizes[:2]) :])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "heads"), [(16, 3), (128, 4)])
def test_heads_of_two_streams_are_joined(dtype: torch.dtype, size: int, heads: int) -> None:
    from klein_cli.optimize.kernels.qk_norm_rope import norm_rotate_and_concat

    lengths, width = (4, 7), size * heads
    streams = tuple(tuple(randn(2, n, 3 * width, dtype=dtype).chunk(3, dim=-1)) for n in lengths)
    norms = tuple(tuple(randn(size, dtype=dtype, seed=n + i) for i in (0, 1)) for n in lengths)
    rotary = tables(sum(lengths), size, False, torch.float32)
    found = norm_rotate_and_concat(streams, norms, rotary, 1e-6)  # type: ignore[arg-type]
    starts = (slice(0, 4), slice(4, None))
    for stream, weights, where in zip(streams, norms, starts, strict=True):
        place = (rotary[0][where], rotary[1][where])
        for part in (0, 1):
            wanted = turned(stream[part], weights[part], place, False)
            close(found[part][:, where], wanted, ROUNDING[dtype])
        assert torch.equal(found[2][:, where], stream[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("channels", "groups", "height", "width"),
    [(16, 8, 5, 7), (24, 4, 3, 3), (128, 32, 9, 15), (32, 32, 40, 40)],
)
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm(
    dtype: torch.dtype, channels: int, groups: int, height: int, width: int, silu: bool
) -> None:
    from klein_cli.optimize.kernels.group_norm import group_norm

    x = randn(2, channels, height, width, dtype=dtype) * 2 + 5
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = randn(channels, dtype=dtype), randn(channels, dtype=dtype, seed=1)
    wanted = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-6)
    found = group_norm(x, groups, weight, bias, 1e-6, silu=silu)
    close(found, F.silu(wanted) if silu else wanted, ROUNDING[dtype] * 2)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_group_norm_of_pictures_that_lack_a_bias(dtype: torch.dtype) -> None:
    from klein_cli.optimize.kernels.group_norm import group_norm

    x = randn(2, 24, 5, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight, bias, before = (randn(24, dtype=dtype, seed=seed) * 3 for seed in (0, 1, 2))
    whole = x.double() + before.double()[:, None, None]
    wanted = F.group_norm(whole, 4, weight.double(), bias.double(), 1e-6)
    found = group_norm(x, 4, weight, bias, 1e-6, silu=False, before=before)
    close(found, wanted, ROUNDING[dtype] * 2)


@pytest.mark.parametrize("first", [0.0, 300.0])
def test_group_norm_keeps_a_small_variance_beside_a_large_mean(
    first: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of squares in float32 would lose it. Many tiles, many chunks, the last one short.

    The first tile of all may be nowhere near the rest.
    """
    from klein_cli.optimize.kernels import group_norm

    monkeypatch.setattr(group_norm, "_TILE", 64)
    monkeypatch.setattr(group_norm, "_MOST_CHUNKS", 3)
    x = (randn(1, 16, 13, 11) * 0.01 + 300).contiguous(memory_format=torch.channels_last)
    x[:, :, 0, :4] -= 300 - first
    weight, bias = torch.ones(16, device=DEVICE), torch.zeros(16, device=DEVICE)
    wanted = F.group_norm(x.double(), 4, eps=1e-6)
    close(group_norm.group_norm(x, 4, weight, bias, 1e-6, silu=False), wanted, 5e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 16, 3, 5), (2, 24, 41, 9), (3, 200, 4, 4)])
def test_pictures_are_added(
    dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from klein_cli.optimize.kernels import upsample

    monkeypatch.setattr(upsample, "_TILE", 1024)
    x, y = (
        randn(*shape, dtype=dtype, seed=seed).contiguous(memory_format=torch.channels_last)
        for seed in (0, 1)
    )
    bias = randn(shape[1]) * 5
    wanted = x.double() + y.double() + bias.double()[:, None, None]
    found = upsample.add_biased(x, y, bias)
    close(found, wanted, ROUNDING[dtype])
    assert found.data_ptr() == y.data_ptr()
    narrow = x.contiguous(), y.contiguous()  # in torch's usual layout: not written to
    kept = narrow[1].clone()
    again = upsample.add_biased(*narrow, bias)
    close(again, x.double() + kept.double() + bias.double()[:, None, None], ROUNDING[dtype])
    assert torch.equal(narrow[1], kept)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 16, 3, 5), (2, 24, 41, 9), (3, 200, 1, 4)])
def test_phases_are_interleaved(
    dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from klein_cli.optimize.kernels import upsample

    monkeypatch.setattr(upsample, "_TILE", 1024)
    images, channels, height, width = shape
    phases = randn(images, 4 * channels, height + 1, width + 1, dtype=dtype)
    wanted = torch.empty(images, channels, 2 * height, 2 * width, dtype=dtype, device=DEVICE)
    for down in range(2):
        for across in range(2):
            phase = phases.chunk(4, 1)[2 * down + across]
            moved = phase[:, :, down : down + height, across : across + width]
            wanted[:, :, down::2, across::2] = moved
    found = upsample.interleave(phases.contiguous(memory_format=torch.channels_last))
    assert torch.equal(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(upsample.interleave(phases), found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [40, 4096 + 17])
@pytest.mark.parametrize("whole", [True, False])
def test_softmax(
    dtype: torch.dtype, columns: int, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in registers, and rows that are too long for it."""
    from klein_cli.optimize.kernels import group_norm
    from klein_cli.optimize.kernels.group_norm import softmax

    monkeypatch.setattr(group_norm, "_WHOLE_ROW", 8192 if whole else 0)
    scores = randn(3, columns) * 30
    scores[0, -1] = scores[1, 0] = 400.0  # the largest in the last block, and in the first
    wanted = (scores.double() * 0.3).softmax(-1)
    close(softmax(scores, 0.3, dtype), wanted, ROUNDING[dtype])
