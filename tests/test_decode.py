"""Latents to pixels: the patch order, the scale of the latents, and the rounding."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from klein_cli.decode import to_pixels, unpatchify


def first_channels(latents: Tensor) -> Tensor:
    """A stand-in for a VAE: the first three channels, each value an 8 x 8 block of pixels."""
    return latents[:, :3].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def test_patches_are_laid_out_as_diffusers_lays_them() -> None:
    from diffusers import Flux2KleinPipeline

    spatial = torch.randn(1, 128, 3, 5, generator=torch.Generator().manual_seed(1))
    packed = Flux2KleinPipeline._pack_latents(spatial)[0]
    assert torch.equal(unpatchify(packed, (3, 5)), Flux2KleinPipeline._unpatchify_latents(spatial))


def test_the_normalisation_is_undone_before_the_patches() -> None:
    mean, deviation = torch.arange(16.0) / 16, torch.arange(16.0) + 1
    packed = torch.randn(6, 16, generator=torch.Generator().manual_seed(2))
    seen: list[Tensor] = []

    def watch(latents: Tensor) -> Tensor:
        seen.append(latents)
        return torch.zeros(1, 3, 32, 48)

    to_pixels(packed, (2, 3), mean, deviation, watch)
    assert torch.equal(seen[0], unpatchify(packed * deviation + mean, (2, 3)))
    assert seen[0].dtype == torch.float32


def test_the_scale_counts_in_float32() -> None:
    """In bfloat16 256.5 would be 256, and 1 + 2**-10 would be 1."""
    mean, deviation = torch.full((12,), 256.5), torch.full((12,), 1 + 2**-10)
    seen: list[Tensor] = []

    def watch(latents: Tensor) -> Tensor:
        seen.append(latents)
        return torch.zeros(1, 3, 16, 16, dtype=torch.bfloat16)

    to_pixels(torch.ones(1, 12), (1, 1), mean, deviation, watch)
    assert seen[0].unique().tolist() == [256.5 + 1 + 2**-10]


def test_pixels_are_rounded_and_clipped() -> None:
    wanted = [0, 0, 1, 127, 128, 254, 255, 255]
    values = [-9.0, -1.0, 1 / 255, 126.6, 128.4, 254.4, 254.6, 300.0]
    levels = [-9.0, -1.0, *(2 * value / 255 - 1 for value in values[2:])]
    levels[2] = 2 * 0.6 / 255 - 1
    packed = torch.zeros(2, 12)
    packed[:, :4] = torch.tensor(levels).view(2, 4)
    pixels = to_pixels(packed, (1, 2), torch.zeros(12), torch.ones(12), first_channels)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (16, 32, 3)
    red = pixels[::8, ::8, 0]
    assert [*red[:, :2].flatten().tolist(), *red[:, 2:].flatten().tolist()] == wanted
