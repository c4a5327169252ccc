"""Latents -> pixels: the way out of the latent space, one picture at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Decoder = Callable[[Tensor], Tensor]
"""A VAE's decoder: latents (1, c, 2h, 2w) -> pictures (1, 3, 16h, 16w), from -1 to 1."""


def to_pixels(
    packed: Tensor, grid: tuple[int, int], mean: Tensor, deviation: Tensor, decode: Decoder
) -> NDArray[np.uint8]:
    """One picture's latents (h * w, 4c) float32 -> (16h, 16w, 3) uint8.

    `mean` and `deviation` (4c,) undo the normalisation of the latents, in float32. Pictures are
    decoded alone: a VAE's convolutions depend on the batch by a bit.
    """
    latents = unpatchify(packed.float() * deviation.float() + mean.float(), grid)
    picture = decode(latents)[0].float()
    picture = (picture * 0.5 + 0.5).clamp(0.0, 1.0).mul(255.0).round()
    return picture.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


def unpatchify(packed: Tensor, grid: tuple[int, int]) -> Tensor:
    """(h * w, 4c) -> (1, c, 2h, 2w): channels hold (c, row, column) of a 2 x 2 patch, c slowest."""
    rows, columns = grid
    patches = packed.view(rows, columns, -1, 2, 2)
    return patches.permute(2, 0, 3, 1, 4).reshape(1, -1, 2 * rows, 2 * columns)
