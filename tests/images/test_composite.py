"""What was painted lies over the source, and what was kept is the source's own, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy
import pytest
from image_files import ADOBE_RGB, encoded, png, rgb_profile, tiff
from numpy.typing import NDArray
from PIL import Image

from klein_cli.images.composite import softened
from klein_cli.images.masks import MaskedSource, MaskImage, masked_source, painted_size
from klein_cli.images.reading import Picture, read

RANDOM = numpy.random.default_rng(0)


def levels(*shape: int) -> NDArray[numpy.uint8]:
    return RANDOM.integers(0, 256, shape, dtype=numpy.uint8)


def blob(height: int, width: int) -> NDArray[numpy.bool_]:
    """A mask with a round part, a stroke of one pixel and a corner."""
    y, x = numpy.mgrid[:height, :width]
    white = (x - width // 2) ** 2 + (y - height // 2) ** 2 < (min(height, width) // 3) ** 2
    white[height // 4] = True
    white[-9:, -9:] = True
    return white


def source_of(data: bytes, white: NDArray[numpy.bool_]) -> MaskedSource:
    return masked_source(read(data), MaskImage(white=white, sha256="1" * 64, name="mask.png"))


def depths(white: NDArray[numpy.bool_]) -> NDArray[numpy.float64]:
    """The oracle: how many steps to the nearest black pixel, the 8 neighbours being one away."""
    black = numpy.argwhere(~white)
    found = numpy.full(white.shape, numpy.inf)
    for place in numpy.argwhere(white):
        if len(black):
            found[tuple(place)] = numpy.abs(black - place).max(1).min()
    found[~white] = 0
    return found


@pytest.mark.parametrize("blur", [0, 1, 4, 30])
def test_a_blur_is_a_ramp_inside_the_mask(blur: int) -> None:
    white = blob(40, 50)
    oracle = numpy.minimum(1, depths(white) / (blur + 1))
    assert numpy.abs(softened(white, blur) - oracle).max() < 1e-6


def test_a_blur_never_leaves_the_mask_and_rises_inward() -> None:
    """The property: softened outward, kept pixels would not be the source's."""
    white = blob(60, 70)
    weights = softened(white, 6)
    assert (weights[~white] == 0).all()
    assert (weights[white] > 0).all()
    assert weights.max() == 1
    for smaller in (0, 2, 5):
        assert (softened(white, smaller) >= weights).all()
    assert (softened(numpy.ones((9, 9), dtype=bool), 5) == 1).all()  # the image's edge is none


@pytest.mark.parametrize("blur", [0, 5])
def test_the_composite_is_that_of_float64(blur: int) -> None:
    colours, painted, white = levels(70, 96, 3), levels(64, 96, 3), blob(70, 96)
    result = source_of(encoded(colours), white).composite(painted, blur=blur)
    fitted = Image.fromarray(painted).resize((96, 70), Image.Resampling.LANCZOS)
    share = numpy.minimum(1, depths(white) / (blur + 1))[:, :, None]
    oracle = colours * (1 - share) + numpy.asarray(fitted) * share
    assert numpy.abs(result - oracle).max() <= 0.501
    assert (result[~white] == colours[~white]).all()


def test_pixels_that_are_painted_at_their_own_size_stay_as_painted() -> None:
    painted, white = levels(64, 96, 3), blob(64, 96)
    masked = source_of(encoded(levels(64, 96, 3)), white)
    assert (masked.composite(painted)[white] == painted[white]).all()
    assert (masked.composite(painted, keep=False) == painted).all()


def palette() -> tuple[bytes, NDArray[Any]]:
    image = Image.fromarray(levels(71, 97, 3)).quantize(200)
    return encoded(image), numpy.asarray(image.convert("RGB"))


def wide(kind: str) -> tuple[bytes, NDArray[Any]]:
    pixels = RANDOM.integers(0, 65536, (71, 97, 3), dtype=numpy.uint16)
    return (png(pixels) if kind == "PNG" else tiff(pixels, order=">")), pixels


def tagged() -> tuple[bytes, NDArray[Any]]:
    pixels = levels(71, 97, 3)
    return encoded(pixels, icc_profile=rgb_profile(ADOBE_RGB, 2.2, "Adobe RGB")), pixels


def gray() -> tuple[bytes, NDArray[Any]]:
    pixels = levels(71, 97)
    return encoded(pixels), numpy.dstack([pixels] * 3)


@pytest.mark.parametrize(
    "file", [palette(), wide("PNG"), wide("TIFF"), tagged(), gray()], ids=lambda file: ""
)
@pytest.mark.parametrize("blur", [0, 3])
def test_kept_pixels_are_those_of_the_file(file: tuple[bytes, NDArray[Any]], blur: int) -> None:
    """Whatever the file: rounded to 8 bits, or through sRGB and back, they would not be."""
    data, pixels = file
    white = blob(71, 97)
    result = source_of(data, white).composite(levels(64, 96, 3), blur=blur)
    assert result.dtype == pixels.dtype
    assert (result[~white] == pixels[~white]).all()
    assert (result[white] != pixels[white]).any()


def test_painted_levels_of_16_bits_span_all_of_them() -> None:
    data, _ = wide("PNG")
    white = numpy.ones((71, 97), dtype=bool)
    result = source_of(data, white).composite(numpy.full((64, 96, 3), 255, dtype=numpy.uint8))
    assert (result == 65535).all()


def test_what_is_painted_goes_into_the_profile_of_the_source() -> None:
    """sRGB's levels among Adobe RGB's would be too colourful."""
    data, _ = tagged()
    painted = numpy.full((64, 96, 3), (200, 30, 30), dtype=numpy.uint8)
    masked = source_of(data, numpy.ones((71, 97), dtype=bool))
    result = masked.composite(painted)
    assert numpy.abs(result[0, 0].astype(int) - (200, 30, 30)).max() > 15
    assert masked.picture.profile is not None
    back = read(encoded(result, icc_profile=masked.picture.profile))
    assert numpy.abs(back.rgb[0, 0].astype(int) - (200, 30, 30)).max() <= 2


def transparent() -> tuple[MaskedSource, NDArray[numpy.uint8]]:
    pixels = levels(64, 96, 4)
    pixels[:, :10, 3] = 0
    return source_of(encoded(pixels), blob(64, 96)), pixels


@pytest.mark.parametrize("blur", [0, 4])
def test_a_transparent_source_keeps_its_alpha(blur: int) -> None:
    """Over white, then given its alpha again, its edges would be pale."""
    masked, pixels = transparent()
    painted, white = levels(64, 96, 3), masked.white
    result = masked.composite(painted, blur=blur)
    assert result.shape == (64, 96, 4)
    assert (result[~white] == pixels[~white]).all()
    share = numpy.minimum(1, depths(white) / (blur + 1))[:, :, None]
    below = pixels[:, :, 3:] / 255 * (1 - share)
    alpha = below + share
    seen = (pixels[:, :, :3] * below + painted * share) / numpy.maximum(alpha, 1e-9)
    inside = white[:, :, None]
    assert (numpy.abs(result[:, :, :3] - seen) * inside).max() <= 0.501
    assert (numpy.abs(result[:, :, 3:] - 255 * alpha) * inside).max() <= 0.501


def test_a_box_is_put_back_where_it_was() -> None:
    white = numpy.zeros((1300, 1700), dtype=bool)
    white[600:660, 900:1000] = True
    pixels = levels(1300, 1700, 3)
    picture = Picture(rgb=pixels, kept=pixels, sha256="0" * 64, name="a")
    masked = masked_source(picture, MaskImage(white=white, sha256="1" * 64, name="m"))
    painted = levels(512, 512, 3)
    result = masked.composite(painted)
    left, top, right, bottom = masked.box
    placed = numpy.zeros_like(pixels)
    placed[top:bottom, left:right] = painted
    assert (result == numpy.where(white[:, :, None], placed, pixels)).all()
    with_all = masked.composite(painted, keep=False)
    assert (with_all[top:bottom, left:right] == painted).all()
    assert (with_all[:top] == pixels[:top]).all()


def test_an_image_of_24_megapixels_keeps_all_that_is_not_white() -> None:
    """A camera's photograph, with odd sides, a mask too large for its own pixels, and a blur."""
    pixels = numpy.resize(levels(4001, 997, 3), (4001, 6003, 3))
    white = numpy.zeros((4001, 6003), dtype=bool)
    white[500:3000, 1000:3501] = True
    picture = Picture(rgb=pixels, kept=pixels, sha256="0" * 64, name="a")
    masked = masked_source(picture, MaskImage(white=white, sha256="1" * 64, name="m"))
    left, top, right, bottom = masked.box
    assert (right - left) * (bottom - top) > 1024 * 1024
    width, height = painted_size(masked.box)
    result = masked.composite(numpy.full((height, width, 3), 7, dtype=numpy.uint8), blur=2)
    white = white[:, :, None]
    assert (numpy.where(white, 0, result) == numpy.where(white, 0, pixels)).all()
    assert (result[502:2998, 1002:3499] == 7).all()


def test_a_source_is_not_written_into() -> None:
    """The store hands the same arrays to the next image."""
    pixels = levels(64, 96, 3)
    picture = Picture(rgb=pixels, kept=pixels.copy(), sha256="0" * 64, name="a")
    before = replace(picture, rgb=pixels.copy(), kept=pixels.copy())
    masked = masked_source(picture, MaskImage(white=blob(64, 96), sha256="1" * 64, name="m"))
    masked.composite(levels(64, 96, 3))
    assert (picture.kept == before.kept).all()
    assert (picture.rgb == before.rgb).all()
