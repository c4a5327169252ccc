"""References are prepared as diffusers prepares them, to the bit."""

from __future__ import annotations

import numpy
import pytest
from image_files import encoded

from klein_cli.images.reading import read
from klein_cli.images.references import prepare, prepare_alpha, processed_size


@pytest.mark.parametrize(
    ("sides", "processed"),
    [
        ((3024, 4032), (880, 1168)),
        ((6000, 4000), (1248, 832)),
        ((1920, 1080), (1360, 768)),
        ((1280, 720), (1280, 720)),
        ((1000, 1000), (992, 992)),
        ((717, 403), (704, 400)),
        ((8192, 1024), (2896, 352)),
        ((1024, 1024), (1024, 1024)),
        ((1039, 1039), (1008, 1008)),
        ((1040, 1040), (1008, 1008)),
        ((1280, 1280), (1024, 1024)),
        ((64, 64), (64, 64)),
    ],
)
def test_sizes_are_those_that_diffusers_computes(
    sides: tuple[int, int], processed: tuple[int, int]
) -> None:
    """Integer square roots, or rounding, give 1024 for a square of 1040."""
    assert processed_size(*sides) == processed


def test_squares_are_truncated_in_double_precision() -> None:
    """488 of the squares from 1025 to 4096 come out at 1023, and lose 16 pixels."""
    short = [side for side in range(1025, 4097) if processed_size(side, side) == (1008, 1008)]
    assert len(short) == 488
    assert short[:8] == [1039, 1040, 1070, 1081, 1105, 1112, 1113, 1122]


@pytest.mark.parametrize(
    "sides", [(517, 733), (1700, 1300), (1039, 1039), (1040, 1040), (4096, 512), (96, 70)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_diffusers(sides: tuple[int, int], channels: int) -> None:
    """A stretch in place of the crop, or another filter, is another reference."""
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
    from PIL import Image

    random = numpy.random.default_rng(0)
    pixels = random.integers(0, 256, (sides[1], sides[0], channels), dtype=numpy.uint8)
    image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
    width, height = image.size
    theirs = image
    if width * height > 1024 * 1024:
        theirs = Flux2ImageProcessor._resize_to_target_area(image, 1024 * 1024)
    wide, high = theirs.width // 16 * 16, theirs.height // 16 * 16
    tensor = Flux2ImageProcessor().preprocess(theirs, high, wide, resize_mode="crop")
    ours = prepare(read(encoded(image, compress_level=1)))
    assert ours.shape == (high, wide, 3)
    assert processed_size(*sides) == (wide, high)
    wanted = ((tensor[0] + 1) / 2 * 255).round().numpy().transpose(1, 2, 0)
    assert (ours == wanted).all()


def test_an_alpha_comes_back_at_the_size_of_the_edit() -> None:
    """Cropped as the colours were: stretched, it would not fit their outlines."""
    alpha = numpy.zeros((75, 100), dtype=numpy.uint8)
    alpha[5:69, 2:98] = numpy.random.default_rng(0).integers(0, 256, (64, 96), dtype=numpy.uint8)
    colours = numpy.full((75, 100, 3), 9, dtype=numpy.uint8)
    picture = read(encoded(numpy.dstack([colours, alpha])))
    same = prepare_alpha(picture, 96, 64)
    assert same is not None
    assert (same == alpha[5:69, 2:98]).all()
    larger = prepare_alpha(picture, 192, 128)
    assert larger is not None
    assert larger.shape == (128, 192)
    assert prepare_alpha(read(encoded(colours)), 96, 64) is None
