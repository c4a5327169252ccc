"""The noise levels of a picture: (image tokens, steps) -> sigmas."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from klein_cli.sampling.latents import PIXELS_PER_TOKEN


def shift(tokens: int, steps: int) -> float:
    """mu, the shift of the schedule towards high noise; fitted by Black Forest Labs.

    `tokens` is the number of image tokens, height / 16 * width / 16. Source: flux2's
    `compute_empirical_mu`.
    """
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190.0
    return slope * steps + (at_200 - 200.0 * slope)


def sigmas(tokens: int, steps: int) -> Tensor:
    """(steps + 1,) float32 on the host, from 1 down to 0: e^mu / (e^mu + 1/t - 1).

    t falls from 1 in equal steps. Taken in float32, in the order of diffusers'
    FlowMatchEulerDiscreteScheduler, so that the numbers are the same to the last bit.
    """
    scale = math.exp(shift(tokens, steps))
    times = np.linspace(1.0, 1.0 / steps, steps).astype(np.float32)
    levels = scale / (scale + (1 / times - 1))
    return torch.from_numpy(np.append(levels, np.float32(0.0)))


def noise_levels(width: int, height: int, steps: int) -> list[float]:
    """The sigmas of a picture of these pixels, for its record: the shortest exact float32s."""
    tokens = (width // PIXELS_PER_TOKEN) * (height // PIXELS_PER_TOKEN)
    return [float(str(np.float32(level))) for level in sigmas(tokens, steps)]
