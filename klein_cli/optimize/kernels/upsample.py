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
def _interleave(
    phases, out, pixels, height, width,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """By the pixels of the large image, which is `height` by `width`."""
    pixel, channel, inside = _tile(pixels, CHANNELS, BLOCK, PIXELS)
    row, column = pixel // width, pixel % width
    image, row = row // height, row % height
    down, across = row % 2, column % 2
    # The phases have a row and a column more than the small image.
    place = image * (height // 2 + 1) + row // 2 + down
    place = place * (width // 2 + 1) + column // 2 + across
    source = (place * 4 + 2 * down + across) * CHANNELS + channel
    value = tl.load(phases + source, mask=inside)
    tl.store(out + pixel * CHANNELS + channel, value, mask=inside)


def add_biased(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """x + y + bias of images (B, C, H, W) and (C,) float32, in the place of `y` if it can be."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = y.contiguous(memory_format=torch.channels_last)
    channels, block, tile, pixels = _tiles(y)
    _add_biased[(triton.cdiv(pixels, tile),)](
        x, y, bias, pixels, CHANNELS=channels, BLOCK=block, PIXELS=tile, **options(8)
    )
    return y


def interleave(phases: Tensor) -> Tensor:
    """The four phases of an image, (B, 4C, H + 1, W + 1), -> the image (B, C, 2H, 2W) in
    channels_last. See `klein_cli.optimize.upsampling.FoldedConv`.
    """
    phases = phases.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = phases.shape
    height, width = 2 * (height - 1), 2 * (width - 1)
    out = phases.new_empty(images, height, width, channels // 4).permute(0, 3, 1, 2)
    channels, block, tile, pixels = _tiles(out)
    _interleave[(triton.cdiv(pixels, tile),)](
        phases, out, pixels, height, width,
        CHANNELS=channels, BLOCK=block, PIXELS=tile, **options(8),
    )  # fmt: skip
    return out


def _tiles(x: Tensor) -> tuple[int, int, int, int]:
    """Channels, their block, pixels of a tile and pixels of all images."""
    images, channels, height, width = x.shape
    block = triton.next_power_of_2(channels)
    return channels, block, max(1, _TILE // block), images * height * width
