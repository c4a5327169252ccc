"""The latents that the loop moves: their noise, their order and their positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from klein_cli.recipe import PIXELS_PER_TOKEN

TIME_STEP = 10
"""Between an image and its references, each at a time of its own: flux2's `t_offset`."""


@dataclass(frozen=True, slots=True)
class Latents:
    """A batch of images in the making.

    `packed` (B, h * w, channels) float32, one token a 16 x 16 patch of pixels, row by row;
    `grid` is (h, w).
    """

    packed: Tensor
    grid: tuple[int, int]


def noise(
    seeds: Sequence[int],
    *,
    width: int,
    height: int,
    channels: int,
    device: torch.device,
    drawn_on: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Latents:
    """Pure noise, one generator an image; width and height in pixels.

    On the CPU it is drawn in float32: a seed means the same noise on every machine and in every
    dtype. (The official code draws in the model's dtype; from torch 2.13 on that is this draw
    rounded, before it is another.) On "cuda" it is drawn in the model's `dtype`, as the official
    code does on that device, and differs between GPUs.
    """
    grid = (height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN)
    source = torch.device("cpu") if drawn_on == "cpu" else device
    kind = torch.float32 if drawn_on == "cpu" else dtype
    images = []
    for seed in seeds:
        generator = torch.Generator(source).manual_seed(seed)
        shape = (1, channels, *grid)
        images.append(torch.randn(shape, generator=generator, device=source, dtype=kind))
    spatial = torch.cat(images).to(device=device, dtype=torch.float32)
    return Latents(spatial.flatten(2).transpose(1, 2).contiguous(), grid)


def position_ids(
    text_tokens: int,
    grid: tuple[int, int],
    device: torch.device,
    references: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """(tokens, 4) int64 positions (t, h, w, l): the text's, the image's, each reference's.

    `grid` and those of the references are (h, w). Text tokens differ in l alone, image tokens in h
    and w. References lie at t = 10, 20 and so on, each on a grid of its own from (0, 0) on.
    """
    text = torch.zeros(text_tokens, 4, dtype=torch.int64)
    text[:, 3] = torch.arange(text_tokens)
    images = [_grid_ids(TIME_STEP * k, one) for k, one in enumerate((grid, *references))]
    return torch.cat((text, *images)).to(device)


def _grid_ids(time: int, grid: tuple[int, int]) -> Tensor:
    rows, columns = grid
    ids = torch.zeros(rows, columns, 4, dtype=torch.int64)
    ids[..., 0] = time
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)
    return ids.flatten(0, 1)
