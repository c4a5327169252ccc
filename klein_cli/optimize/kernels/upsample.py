"""Images in channels_last: what lies between a VAE's convolutions besides norms."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from klein_cli.optimize.kernels.options import options

_TILE = 8192
"""Values of one tile."""


@triton.jit
def _tile(pixels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr):
    """This program's pixels and channels, and which of them there are."""
    channel = tl.arange(0, BLOCK)[None, :]
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)[:, None]
    return pixel, channel, (pixel < pixels) & (channel < CHANNELS)


@triton.jit
def _add_biased(
    x, y, bias, pixels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr
):  # fmt: skip
    pixel, channel, inside = _tile(pixels, CHANNELS, BLOCK, PIXELS)
    place = pixel * CHANNELS + channel
    total = tl.load(x + place, mask=inside).to(tl.float32)
    total += tl.load(y + place, mask=inside).to(tl.float32)
    total += tl.load(bias + channel, mask=channel < CHANNELS)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _upsample(
    x, out, pixels, width, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr
):  # fmt: skip
    pixel, channel, inside = _tile(pixels, CHANNELS, BLOCK, PIXELS)
    value = tl.load(x + pixel * CHANNELS + channel, mask=inside)
    row, column = pixel // width, pixel % width
    for down in tl.static_range(2):
        for across in tl.static_range(2):
            target = (2 * row + down) * (2 * width) + 2 * column + across
            tl.store(out + target * CHANNELS + channel, value, mask=inside)


def add_biased(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """x + y + bias of images (B, C, H, W) and (C,) float32, in the place of `y` if it can be."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = y.contiguous(memory_format=torch.channels_last)
    channels, block, tile, pixels = _tiles(y)
    _add_biased[(triton.cdiv(pixels, tile),)](
        x, y, bias, pixels, CHANNELS=channels, BLOCK=block, PIXELS=tile, **options(8)
    )
    return y


def upsample(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W) in channels_last: every pixel becomes four."""
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = x.shape
    out = x.new_empty(images, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
    channels, block, tile, pixels = _tiles(x)
    _upsample[(triton.cdiv(pixels, tile),)](
        x, out, pixels, width, CHANNELS=channels, BLOCK=block, PIXELS=tile, **options(8)
    )
    return out


def _tiles(x: Tensor) -> tuple[int, int, int, int]:
    """Channels, their block, pixels of a tile and pixels of all images."""
    images, channels, height, width = x.shape
    block = triton.next_power_of_2(channels)
    return channels, block, max(1, _TILE // block), images * height * width
