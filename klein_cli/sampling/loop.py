"""Noise -> picture latents: Euler's method along the velocity that the DiT predicts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Transformer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(latents (B, N, C), sigma (1,), text (B, 512, D), ids (512 + N, 4)) -> velocity (B, N, C).

`sigma` is the noise level itself, from 1 down to 0. Its shape is (1,) whatever the batch.
"""

OnStep = Callable[[int, int], None]
"""Called after each step with the steps done and the steps in all."""

OnLatents = Callable[[Tensor], None]
"""Called after each step with the latents (B, N, C) float32 that it left."""


def denoise(
    transformer: Transformer,
    latents: Tensor,
    sigmas: Tensor,
    text: Tensor,
    ids: Tensor,
    *,
    guidance: float = 1.0,
    negative: Tensor | None = None,
    on_step: OnStep | None = None,
    on_latents: OnLatents | None = None,
) -> Tensor:
    """Move `latents` (B, N, C) float32 from pure noise to a picture, in float32.

    `sigmas` (steps + 1,) float32 on the host, where their values are known without waiting for
    the device. With `negative`, embeddings shaped as `text`, the velocity is guided away from
    them: negative + guidance * (text - negative), each predicted by a forward of its own.
    """
    steps = len(sigmas) - 1
    for step in range(steps):
        sigma = sigmas[step : step + 1]
        velocity = transformer(latents, sigma, text, ids).to(latents.dtype)
        if negative is not None:
            away = transformer(latents, sigma, negative, ids).to(latents.dtype)
            velocity = away + guidance * (velocity - away)
        latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity
        if on_latents is not None:
            on_latents(latents)
        if on_step is not None:
            on_step(step + 1, steps)
    return latents
