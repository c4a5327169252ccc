"""Latents to pixels: the patch order, the scale of the latents, and the rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from klein_cli.checkpoints.resolve import resolve
from klein_cli.errors import KleinError
from klein_cli.pipeline import Pipeline, choose
from klein_cli.recipe import Recipe
from klein_cli.sampling.decode import decode_latents, in_tiles, to_pixels, unpatchify
from klein_cli.settings import Settings


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

    decode_latents(packed, (2, 3), (mean, deviation), watch, dtype=torch.float32, tiled=False)
    assert torch.equal(seen[0], unpatchify(packed * deviation + mean, (2, 3)))
    assert seen[0].dtype == torch.float32


def test_the_scale_counts_in_float32() -> None:
    """In bfloat16 256.5 would be 256, and 1 + 2**-10 would be 1."""
    mean, deviation = torch.full((12,), 256.5), torch.full((12,), 1 + 2**-10)
    seen: list[Tensor] = []

    def watch(latents: Tensor) -> Tensor:
        seen.append(latents)
        return torch.zeros(1, 3, 16, 16, dtype=torch.bfloat16)

    scale = mean, deviation
    decode_latents(torch.ones(1, 12), (1, 1), scale, watch, dtype=torch.float32, tiled=False)
    assert seen[0].unique().tolist() == [256.5 + 1 + 2**-10]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_picture_that_is_no_numbers_is_no_black_picture(value: float) -> None:
    """float16 that overflows, or a damaged weight: a night of black files, and exit code 0."""

    image = torch.zeros(3, 16, 16)
    image[1, 2, 3] = value
    with pytest.raises(KleinError, match="NaN or Inf") as caught:
        to_pixels(image)
    assert "--dtype float32" in caught.value.hint


def test_pixels_are_rounded_and_clipped() -> None:
    wanted = [0, 0, 1, 127, 128, 254, 255, 255]
    values = [-9.0, -1.0, 1 / 255, 126.6, 128.4, 254.4, 254.6, 300.0]
    levels = [-9.0, -1.0, *(2 * value / 255 - 1 for value in values[2:])]
    levels[2] = 2 * 0.6 / 255 - 1
    pixels = to_pixels(torch.tensor(levels).expand(3, 2, 8))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (2, 8, 3)
    assert pixels[0, :, 0].tolist() == wanted


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (8, 8), (9, 31), (40, 12), (64, 64)])
def test_tiles_cover_a_picture_and_add_up(grid: tuple[int, int]) -> None:
    """A decoder that looks at no neighbour gives the same image in tiles as whole."""
    latents = torch.randn(
        1, 4, 2 * grid[0], 2 * grid[1], generator=torch.Generator().manual_seed(1)
    )
    sizes: list[int] = []

    def decode(part: Tensor) -> Tensor:
        sizes.append(part.shape[2] * part.shape[3])
        return first_channels(part)

    torch.testing.assert_close(in_tiles(decode)(latents), first_channels(latents))
    assert max(sizes) <= 64 * 64
    if min(grid) >= 8:
        assert max(sizes) <= 0.4 * latents.shape[2] * latents.shape[3]


def test_tiles_fade_into_each_other() -> None:
    """Tiles that come out lighter and darker meet in no edge."""
    shades = iter(np.linspace(-1, 1, 9))

    def decode(part: Tensor) -> Tensor:
        return torch.full((1, 3, 8 * part.shape[2], 8 * part.shape[3]), float(next(shades)))

    picture = in_tiles(decode)(torch.zeros(1, 4, 128, 128))[0, 0]
    assert picture.std() > 0.3
    steps = torch.cat([picture.diff(dim=0).abs().flatten(), picture.diff(dim=1).abs().flatten()])
    assert steps.max() < 0.02


def test_a_picture_in_tiles_is_nearly_the_same() -> None:
    """The bound of docs/runs.md, on the VAE of `tiny`: the only trained one that we have."""
    pipeline = Pipeline.load(resolve("tiny"), choose(Settings(device="cpu", dtype="float32")))
    recipe = Recipe(
        prompt="a red circle above a green star on a white background",
        seed=3,
        width=256,
        height=256,
        steps=4,
        guidance=1.0,
        model="tiny",
    )
    whole, tiled = (pipeline.render([recipe], tiled=tiled)[0] for tiled in (False, True))
    difference = np.abs(whole.astype(int) - tiled.astype(int))
    # Measured: 1.3, 4 and 36, the last at the shapes' edges, which are as sharp as pixels are.
    assert 0 < difference.mean() < 2
    assert np.percentile(difference, 99) <= 8
    assert difference.max() < 58
