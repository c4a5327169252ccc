"""Group norm and SiLU over images in channels_last, and the softmax of the VAE's attention."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from klein_cli.optimize.kernels.options import options, row_options

_TILE = 8192
"""Values of one tile: 64 pixels of 128 channels."""

_STAGES = 4
"""Tiles of a chunk that are in a multiprocessor at a time, all but one on their way."""

_MOST_CHUNKS = 512
"""Parts of an image whose statistics are taken apart and then merged."""

_WHOLE_ROW = 16384
"""Scores of a row, at most, that are held in registers: those of an image of 1024x1024."""


@triton.jit
def _moments(
    x, means, squares, pixels, chunk,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of every channel over one chunk of one image.

    Deviations are taken from the mean of the chunk's first tile: sums of squares alone would lose a
    small variance beside a large mean. How far off that mean is counts among the deviations, so no
    more precision is lost than a factor of the tiles of a chunk.
    """
    part, image = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK)[None, :]
    begin = part * chunk
    end = tl.minimum(begin + chunk, pixels)
    source = x + image * pixels * CHANNELS
    pixel = begin + tl.arange(0, PIXELS)[:, None]
    inside = (pixel < end) & (channel < CHANNELS)
    first = tl.load(source + pixel * CHANNELS + channel, mask=inside, other=0.0)
    count = tl.minimum(end - begin, PIXELS).to(tl.float32)
    origin = tl.sum(first.to(tl.float32), axis=0, keep_dims=True) / count
    sums = tl.zeros((PIXELS, BLOCK), tl.float32)
    squared = tl.zeros((PIXELS, BLOCK), tl.float32)
    for start in tl.range(begin, end, PIXELS, num_stages=STAGES):
        pixel = start + tl.arange(0, PIXELS)[:, None]
        inside = (pixel < end) & (channel < CHANNELS)
        value = tl.load(source + pixel * CHANNELS + channel, mask=inside, other=0.0)
        away = tl.where(inside, value.to(tl.float32) - origin, 0.0)
        sums += away
        squared += away * away
    apart = tl.sum(sums, axis=0, keep_dims=True) / (end - begin).to(tl.float32)
    square = tl.sum(squared - sums * apart, axis=0, keep_dims=True)
    target = (image * tl.num_programs(0) + part) * CHANNELS + channel
    tl.store(means + target, origin + apart, mask=channel < CHANNELS)
    tl.store(squares + target, square, mask=channel < CHANNELS)


@triton.jit
def _merge(
    means, squares, before, weight, bias, factors, offsets, pixels, chunk, chunks, eps,
    CHANNELS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr,
    BEFORE: tl.constexpr,
):  # fmt: skip
    """The moments of one group -> what its channels are multiplied by, and what is added."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    part = tl.arange(0, CHUNKS)[:, None]
    member = tl.arange(0, BLOCK)[None, :]
    channel = group * SIZE + member
    inside = (part < chunks) & (member < SIZE)
    place = (image * chunks + part) * CHANNELS + channel
    own = member < SIZE
    mean = tl.load(means + place, mask=inside, other=0.0)
    if BEFORE:
        more = tl.load(before + channel, mask=own, other=0.0).to(tl.float32)
        mean = tl.where(inside, mean + more, 0.0)
    square = tl.load(squares + place, mask=inside, other=0.0)
    count = tl.minimum(pixels - part * chunk, chunk).to(tl.float32)
    count = tl.where(inside, count, 0.0)
    values = pixels.to(tl.float32) * SIZE
    middle = tl.sum(tl.sum(mean * count, axis=1), axis=0) / values
    apart = mean - middle
    total = tl.sum(tl.sum(square + apart * apart * count, axis=1), axis=0)
    inverse = tl.rsqrt(total / values + eps)
    factor = inverse * tl.load(weight + channel, mask=own).to(tl.float32)
    offset = tl.load(bias + channel, mask=own).to(tl.float32) - middle * factor
    if BEFORE:
        offset += more * factor
    target = image * CHANNELS + channel
    tl.store(factors + target, factor, mask=own)
    tl.store(offsets + target, offset, mask=own)


@triton.jit
def _apply(
    x, factors, offsets, out, pixels,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK)[None, :]
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)[:, None]
    inside = (pixel < pixels) & (channel < CHANNELS)
    own = channel < CHANNELS
    place = (image * pixels + pixel) * CHANNELS + channel
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(factors + image * CHANNELS + channel, mask=own)
    y = value * factor + tl.load(offsets + image * CHANNELS + channel, mask=own)
    if SILU:
        y = y * tl.sigmoid(y)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _softmax_whole(scores, out, columns, scale, BLOCK: tl.constexpr):
    """A row that fits in registers: read once."""
    row = tl.program_id(0).to(tl.int64) * columns
    place = tl.arange(0, BLOCK)
    inside = place < columns
    score = tl.load(scores + row + place, mask=inside, other=-float("inf")) * scale
    y = tl.exp(score - tl.max(score, axis=0))
    y = y / tl.sum(y, axis=0)
    tl.store(out + row + place, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _softmax(scores, out, columns, scale, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    source = scores + row * columns
    highest = -float("inf")
    total = 0.0
    start = 0
    while start < columns:
        inside = start + place < columns
        score = tl.load(source + start + place, mask=inside, other=-float("inf")) * scale
        higher = tl.maximum(highest, tl.max(score, axis=0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(score - higher), axis=0)
        highest = higher
        start += BLOCK
    start = 0
    while start < columns:
        inside = start + place < columns
        score = tl.load(source + start + place, mask=inside, other=-float("inf")) * scale
        y = tl.exp(score - highest) / total
        tl.store(out + row * columns + start + place, y.to(out.dtype.element_ty), mask=inside)
        start += BLOCK


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool,
    before: Tensor | None = None,
) -> Tensor:
    """Group norm of images (B, C, H, W), then SiLU if asked; the result is channels_last.

    Of more than one pixel: Triton takes a 1 for a constant. `before` (C,) is added to the images
    first.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = x.shape
    pixels = height * width
    block = triton.next_power_of_2(channels)
    tile = max(1, _TILE // block)
    chunk = tile * triton.cdiv(triton.cdiv(pixels, tile), _MOST_CHUNKS)
    chunks = triton.cdiv(pixels, chunk)
    shape = (2, images, chunks, channels)
    means, squares = torch.empty(shape, dtype=torch.float32, device=x.device)
    factors, offsets = torch.empty_like(means[:, 0]), torch.empty_like(means[:, 0])
    _moments[(chunks, images)](
        x, means, squares, pixels, chunk,
        CHANNELS=channels, BLOCK=block, PIXELS=tile, STAGES=_STAGES, **options(8),
    )  # fmt: skip
    size = channels // groups
    _merge[(groups, images)](
        means, squares, bias if before is None else before, weight, bias, factors, offsets,
        pixels, chunk, chunks, eps,
        CHANNELS=channels, SIZE=size, BLOCK=triton.next_power_of_2(size),
        CHUNKS=triton.next_power_of_2(chunks), BEFORE=before is not None, **options(4),
    )  # fmt: skip
    out = torch.empty_like(x)
    _apply[(triton.cdiv(pixels, tile), images)](
        x, factors, offsets, out, pixels,
        CHANNELS=channels, BLOCK=block, PIXELS=tile, SILU=silu, **options(8),
    )  # fmt: skip
    return out


def softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """softmax(scores * scale) of float32 (rows, columns) along the columns, in `dtype`."""
    assert scores.is_contiguous()
    rows, columns = scores.shape
    out = torch.empty(scores.shape, dtype=dtype, device=scores.device)
    block = triton.next_power_of_2(columns)
    if block <= _WHOLE_ROW:
        _softmax_whole[(rows,)](scores, out, columns, scale, BLOCK=block, **row_options(block))
    else:
        _softmax[(rows,)](scores, out, columns, scale, BLOCK=4096, **options(8))
    return out
