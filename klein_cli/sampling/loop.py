"""Noise -> image latents: Euler's method along the velocity that the DiT predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

Condition = TypeVar("Condition")

Blend = Callable[[Tensor, float], Tensor]
"""What becomes of the latents (B, N, C) that a step left at a noise level, before the next."""

Callback = Callable[[int, float, Tensor], None]
"""Called after each step with its number, from 1 on, the noise level that it reached, and the
latents (B, N, C) float32 that it left."""


def denoise(
    velocity: Callable[[Tensor, Tensor, Condition], Tensor],
    latents: Tensor,
    sigmas: Tensor,
    condition: Condition,
    *,
    guidance: float = 1.0,
    negative: Condition | None = None,
    blend: Blend | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Move `latents` (B, N, C) float32 from pure noise to an image, in float32.

    `velocity` predicts (B, N, C) from latents, the noise level (1,) whatever the batch, and what
    the batch is conditioned on. `sigmas` (steps + 1,) float32 on the host, where their values are
    known without waiting for the device. With a `negative` condition, the velocity is guided away
    from it: negative + guidance * (positive - negative), each predicted by a forward of its own.
    After each step `blend` puts back what is to be kept: `klein_cli.sampling.masks`.
    """
    for step in range(len(sigmas) - 1):
        sigma = sigmas[step : step + 1]
        towards = velocity(latents, sigma, condition).to(latents.dtype)
        if negative is not None:
            away = velocity(latents, sigma, negative).to(latents.dtype)
            towards = away + guidance * (towards - away)
        latents = latents + (sigmas[step + 1] - sigmas[step]) * towards
        if blend is not None:
            latents = blend(latents, float(sigmas[step + 1]))
        if callback is not None:
            callback(step + 1, float(sigmas[step + 1]), latents)
    return latents
