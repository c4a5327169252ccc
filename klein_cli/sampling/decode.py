"""Latents -> pixels: the way out of the latent space, one image at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klein_cli.errors import KleinError

Decoder = Callable[[Tensor], Tensor]
"""A VAE's decoder: latents (1, c, 2h, 2w) -> images (1, 3, 16h, 16w), from -1 to 1."""

_SCALE = 8
_TILE = 64
"""Latents along the side of a tile, at most: 512 pixels."""


def decode_latents(
    packed: Tensor,
    grid: tuple[int, int],
    scale: tuple[Tensor, Tensor],
    decode: Decoder,
    *,
    dtype: torch.dtype,
    tiled: bool,
) -> Tensor:
    """One image's latents (h * w, 4c) float32 -> (3, 16h, 16w), from -1 to 1.

    `scale`, mean and deviation (4c,), undoes the normalisation of the latents, in float32; `decode`
    is given them in `dtype`. Images are decoded alone: a VAE's convolutions depend on the batch by
    a bit.
    """
    mean, deviation = scale
    latents = unpatchify(packed.float() * deviation.float() + mean.float(), grid)

    def narrowed(latents: Tensor) -> Tensor:
        return decode(latents.to(dtype))

    return (in_tiles(narrowed) if tiled else narrowed)(latents)[0]


def to_pixels(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) from -1 to 1 -> (H, W, 3) uint8.

    Raises KleinError when the image is not made of numbers.
    """
    image = image.float()
    finite = image.isfinite().all()
    image = (image * 0.5 + 0.5).clamp(0.0, 1.0).mul(255.0).round()
    pixels = image.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    if not finite:  # asked for last, since it waits for the device
        raise KleinError(
            "the model produced NaN or Inf: its weights are damaged, or too large for the dtype",
            "try --dtype float32; klein doctor --deep checks the model's files",
        )
    return pixels


def unpatchify(packed: Tensor, grid: tuple[int, int]) -> Tensor:
    """(h * w, 4c) -> (1, c, 2h, 2w): channels hold (c, row, column) of a 2 x 2 patch, c slowest."""
    rows, columns = grid
    patches = packed.view(rows, columns, -1, 2, 2)
    return patches.permute(2, 0, 3, 1, 4).reshape(1, -1, 2 * rows, 2 * columns)


def in_tiles(decode: Decoder) -> Decoder:
    """`decode` a tile at a time, for images too large for the memory: not quite the same image.

    Tiles overlap and fade into each other, so that no edge shows. But a VAE's norms and its
    attention look at all of what they are given, so a tile comes out a little different alone:
    docs/runs.md says how much. How an image is cut depends on its size alone.
    """

    def tiled(latents: Tensor) -> Tensor:
        height, width = latents.shape[2:]
        image = latents.new_zeros(1, 3, _SCALE * height, _SCALE * width, dtype=torch.float32)
        for rows, down in _tiles(height):
            for columns, across in _tiles(width):
                part = decode(latents[:, :, rows, columns]).float()
                fade = down.to(part)[:, None] * across.to(part)
                image[:, :, _scaled(rows), _scaled(columns)] += part * fade
        return image

    return tiled


def _tiles(length: int) -> list[tuple[slice, Tensor]]:
    """Places of tiles along a side of `length` latents, and the weights of their pixels.

    At every pixel the weights of all tiles add up to 1.
    """
    side = min(_TILE, math.ceil(length * 4 / 7))
    count = math.ceil((length - side // 4) / (side - side // 4))
    steps = max(count - 1, 1)
    spans = [
        slice(start, start + side)
        for start in (round(n * (length - side) / steps) for n in range(count))
    ]
    weights = torch.zeros(count, _SCALE * length)
    for weight, span in zip(weights, spans, strict=True):
        # From 1 at the edge to the tile's middle and back: what two tiles share fades evenly.
        ramp = torch.arange(1.0, _SCALE * side + 1)
        weight[_scaled(span)] = torch.minimum(ramp, ramp.flip(0))
    weights /= weights.sum(0)
    return [(span, weight[_scaled(span)]) for span, weight in zip(spans, weights, strict=True)]


def _scaled(span: slice) -> slice:
    return slice(_SCALE * span.start, _SCALE * span.stop)
