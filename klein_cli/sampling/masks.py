"""What an edit with a mask keeps of its source, put back into the latents after every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Kept:
    """The latents of the sources (B or 1, N, C), the noise that the images began as (B, N, C), and
    which tokens are painted (B or 1, N, 1) bool.

    A `klein_cli.sampling.loop.Blend`, as in diffusers' Flux2KleinInpaintPipeline at strength 1:
    what is kept stands at the noise level of what is painted, with always the same noise, and at
    the end is the source.
    """

    source: Tensor
    noise: Tensor
    painted: Tensor

    def __call__(self, latents: Tensor, sigma: float) -> Tensor:
        """The latents after a step, at the noise level that it reached."""
        kept = sigma * self.noise + (1.0 - sigma) * self.source
        return torch.where(self.painted, latents, kept)
