"""How much of a difference to the official pipeline is rounding, and from where on it is not.

Each limit is at least twice what right encoders of either attention were measured at on a CPU, with
random weights and with `tiny`, and far below what a wrong one does to the embeddings: see
docs/numerics.md. None is looser than sglang's for this model: ssim .91, psnr 25, mean_abs_diff 5,
clip .97. With --quantize fp8 the images are held to those themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from klein_cli.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What passes in one dtype.

    `row_median`, `row_worst`: relative error of the median and of the worst row of a prompt's
    embeddings, for its valid and for its padded rows each. `latents`: relative error after each
    step. Of the images, the least ssim, psnr in decibels and clip, and the most mean_abs_diff in
    levels of 255.
    """

    row_median: float
    row_worst: float
    latents: float
    ssim: float
    psnr: float
    mean_abs_diff: float
    clip: float


LIMITS = {
    "float32": Limits(
        row_median=5e-6,
        row_worst=2e-5,
        latents=2e-5,
        ssim=0.9999,
        psnr=65.0,
        mean_abs_diff=0.02,
        clip=0.999,
    ),
    "float16": Limits(
        row_median=6e-3,
        row_worst=1.2e-2,
        latents=1e-2,
        ssim=0.99,
        psnr=45.0,
        mean_abs_diff=0.5,
        clip=0.99,
    ),
    "bfloat16": Limits(
        row_median=4e-2,
        row_worst=8e-2,
        latents=5e-2,
        ssim=0.95,
        psnr=30.0,
        mean_abs_diff=3.0,
        clip=0.97,
    ),
    "fp8": Limits(
        row_median=4e-2,
        row_worst=8e-2,
        latents=1.2e-1,
        ssim=0.91,
        psnr=25.0,
        mean_abs_diff=5.0,
        clip=0.97,
    ),
}
"""Limits by precision: a dtype, or what the transformer is quantised to."""


def precision(settings: Settings) -> str:
    """Which of LIMITS holds for decided settings."""
    return settings.dtype if settings.quantize == "none" else settings.quantize
