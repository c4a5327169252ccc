"""Pixels -> latents: the way into the latent space, one image at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Encoder = Callable[[Tensor], Tensor]
"""A VAE's encoder: images (1, 3, 16h, 16w) from -1 to 1 -> latents (1, c, 2h, 2w)."""


def from_pixels(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 from -1 to 1, its channels still side by side."""
    return torch.tensor(pixels).permute(2, 0, 1).float() / 255.0 * 2.0 - 1.0


def encode_image(
    image: Tensor, scale: tuple[Tensor, Tensor], encode: Encoder, *, dtype: torch.dtype
) -> Tensor:
    """One image (3, 16h, 16w) from -1 to 1 -> its normalised latents (h * w, 4c) float32.

    `encode` is given it in `dtype`; `scale`, mean and deviation (4c,), normalises in float32.
    Always channels last, as the official code has it: in the other order convolutions round
    otherwise. Images are encoded alone and whole: a VAE's norms and its attention look at all of
    what they are given.
    """
    mean, deviation = scale
    batch = image[None].to(dtype).contiguous(memory_format=torch.channels_last)
    return (patchify(encode(batch).float()) - mean.float()) / deviation.float()


def patchify(latents: Tensor) -> Tensor:
    """(1, c, 2h, 2w) -> (h * w, 4c): the reverse of `klein_cli.sampling.decode.unpatchify`."""
    channels, height, width = latents.shape[1:]
    patches = latents.view(channels, height // 2, 2, width // 2, 2)
    return patches.permute(1, 3, 0, 2, 4).reshape(-1, 4 * channels)
