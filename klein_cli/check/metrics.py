"""How far two embeddings, latents or images are from each other.

Images are (H, W, 3) uint8 of one size; the definitions are those of scikit-image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]

_WINDOW = 7
_LEVELS = 255.0
_TINY = 1e-12


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over the norm of what is wanted, all elements together."""
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).norm() / wanted.norm().clamp(min=_TINY))


def row_errors(found: Tensor, wanted: Tensor) -> Tensor:
    """The relative error of each row: (..., channels) -> (...), float64."""
    found, wanted = found.double(), wanted.double()
    errors: Tensor = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp(min=_TINY)
    return errors


def mean_abs_diff(found: Pixels, wanted: Pixels) -> float:
    """The mean absolute difference, in levels from 0 to 255."""
    return float(np.abs(found.astype(np.int64) - wanted).mean())


def psnr(found: Pixels, wanted: Pixels) -> float:
    """The peak signal-to-noise ratio in decibels; infinite for equal images."""
    error = float(np.square(found.astype(np.int64) - wanted).mean())
    return 10.0 * math.log10(_LEVELS**2 / error) if error else math.inf


def ssim(found: Pixels, wanted: Pixels) -> float:
    """The structural similarity, 1 for equal images: the mean over channels and 7 x 7 windows.

    Equal to skimage's `structural_similarity(found, wanted, channel_axis=2, data_range=255)`.
    Source: Wang et al., "Image quality assessment", 2004, with sample covariances.
    """
    return float(np.mean(list(_ssim_of_channels(found, wanted))))


def _ssim_of_channels(found: Pixels, wanted: Pixels) -> Iterator[float]:
    c1, c2 = (0.01 * _LEVELS) ** 2, (0.03 * _LEVELS) ** 2
    count = _WINDOW**2
    unbiased = count / (count - 1)
    for channel in range(found.shape[2]):
        x = found[..., channel].astype(np.int64)
        y = wanted[..., channel].astype(np.int64)
        mean_x, mean_y = _window_means(x), _window_means(y)
        variances = unbiased * (_window_means(x * x + y * y) - mean_x**2 - mean_y**2)
        covariance = unbiased * (_window_means(x * y) - mean_x * mean_y)
        likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        most = (mean_x**2 + mean_y**2 + c1) * (variances + c2)
        yield float((likeness / most).mean())


def _window_means(values: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of every window that lies inside the image, from exact running sums."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    w = _WINDOW
    inside = sums[w:, w:] - sums[:-w, w:] - sums[w:, :-w] + sums[:-w, :-w]
    means: NDArray[np.float64] = inside / float(w * w)
    return means
