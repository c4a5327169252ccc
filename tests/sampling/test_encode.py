"""Pixels and latents, there and back."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from klein_cli.sampling.decode import to_pixels, unpatchify
from klein_cli.sampling.encode import from_pixels, patchify

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def test_pixels_are_those_that_diffusers_encodes() -> None:
    """Bit for bit, and with the channels side by side: convolutions round by their layout."""
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    processor = Flux2ImageProcessor(do_resize=False)
    found, expected = from_pixels(PIXELS), processor.preprocess(Image.fromarray(PIXELS))[0]
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


def test_pixels_come_back() -> None:
    assert np.array_equal(to_pixels(from_pixels(PIXELS)), PIXELS)


def test_patches_come_back() -> None:
    latents = torch.randn(1, 3, 4, 10)
    packed = patchify(latents)
    assert packed.shape == (10, 12)
    assert torch.equal(unpatchify(packed, (2, 5)), latents)
    assert packed[1, :4].tolist() == latents[0, 0, :2, 2:4].flatten().tolist()
