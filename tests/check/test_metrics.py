"""The measures are the published ones: scikit-image's where it has them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klein_cli.check.metrics import (
    Pixels,
    mean_abs_diff,
    psnr,
    relative_error,
    row_errors,
    ssim,
)


def pictures(seed: int, height: int, width: int, noise: int) -> tuple[Pixels, Pixels]:
    """A smooth image, and the same with noise of so many levels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(x / rng.uniform(2, 20) + y / rng.uniform(2, 20)) for _ in range(3)]
    wanted = np.stack(waves, axis=2)
    found = wanted + rng.normal(0, noise, wanted.shape)
    return found.clip(0, 255).astype(np.uint8), wanted.astype(np.uint8)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    height=st.integers(7, 60),
    width=st.integers(7, 60),
    noise=st.sampled_from([1, 10, 80]),
)
def test_pictures_are_measured_as_scikit_image_does(
    seed: int, height: int, width: int, noise: int
) -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    found, wanted = pictures(seed, height, width, noise)
    expected = structural_similarity(found, wanted, channel_axis=2, data_range=255)
    assert ssim(found, wanted) == pytest.approx(expected, abs=1e-12)
    if not np.array_equal(found, wanted):
        expected = peak_signal_noise_ratio(wanted, found, data_range=255)
        assert psnr(found, wanted) == pytest.approx(expected, abs=1e-9)
    expected = np.abs(found.astype(float) - wanted.astype(float)).mean()
    assert mean_abs_diff(found, wanted) == pytest.approx(expected, abs=1e-12)


def test_equal_pictures() -> None:
    picture, _ = pictures(1, 20, 30, 9)
    assert ssim(picture, picture) == 1.0
    assert psnr(picture, picture) == math.inf
    assert mean_abs_diff(picture, picture) == 0.0


def test_black_against_white_does_not_wrap_around() -> None:
    black = np.zeros((16, 16, 3), np.uint8)
    assert mean_abs_diff(black, black + 255) == mean_abs_diff(black + 255, black) == 255.0
    assert psnr(black, black + 255) == 0.0
    assert ssim(black, black + 255) < 1e-3


def test_relative_errors() -> None:
    wanted = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]])
    found = wanted + torch.tensor([[0.0, 0.5], [0.0, 0.0], [0.0, 0.0]])
    assert row_errors(found, wanted).tolist() == pytest.approx([0.1, 0.0, 0.0])
    assert relative_error(found, wanted) == pytest.approx(0.5 / 125**0.5)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_not_finite_is_not_small(odd: float) -> None:
    wanted, found = torch.ones(3, 4), torch.ones(3, 4)
    found[1, 2] = odd
    assert not relative_error(found, wanted) < 1e9
    assert not float(row_errors(found, wanted).max()) < 1e9
    assert not float(row_errors(found, wanted).median()) < 1e9 or math.isinf(odd)
