"""A student at work: text embeddings and noise in, latents out, in four steps."""

from __future__ import annotations

import torch
from tiny_models import POSITIONS, Student, noise_levels, places
from torch import Tensor

STEPS = 4


@torch.no_grad()
def draw_latents(
    student: Student,
    ids: Tensor,
    mask: Tensor,
    noise: Tensor,
    grid: tuple[int, int],
    references: Tensor | None = None,
) -> Tensor:
    """Latents (B, h * w, 128) float32 that the student draws from packed noise of that shape.

    ids (B, 512) and mask as `Prompts.tokens` gives them; `references` (B, R, 128) are latents of
    pictures of the same grid, one after the other.
    """
    tokens = grid[0] * grid[1]
    given = 0 if references is None else references.shape[1] // tokens
    levels = noise_levels(grid, STEPS).to(noise.device)
    where = places(POSITIONS, grid, given).to(noise.device)
    with torch.autocast(noise.device.type, torch.bfloat16, enabled=noise.is_cuda):
        text, x = student.embed(ids, mask), noise
        for k in range(STEPS):
            velocity = student.velocity(x, levels[k].expand(len(x)), text, where, references)
            x = x + (levels[k + 1] - levels[k]) * velocity
    student.forget()
    return x
