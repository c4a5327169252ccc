"""What of a source is repainted, the box around it, and the tokens that it covers."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import encoded, png
from numpy.typing import NDArray
from PIL import Image

from klein_cli.errors import UsageError
from klein_cli.images.masks import (
    MaskImage,
    box_of,
    expanded,
    masked_source,
    painted_size,
    read_mask,
)
from klein_cli.images.reading import Picture, read

RANDOM = numpy.random.default_rng(0)


def source(width: int, height: int, *, alpha: NDArray[numpy.uint8] | None = None) -> Picture:
    """A source of random colours, as if it had been read."""
    pixels = RANDOM.integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    picture = Picture(rgb=pixels, kept=pixels, sha256="0" * 64, name="a.png")
    return picture if alpha is None else replace(picture, alpha=alpha, kept_alpha=alpha)


def mask(width: int, height: int, *white: tuple[int, int, int, int]) -> MaskImage:
    """A mask with white rectangles: left, top, right, bottom."""
    array = numpy.zeros((height, width), dtype=bool)
    for left, top, right, bottom in white:
        array[top:bottom, left:right] = True
    return MaskImage(white=array, sha256="1" * 64, name="mask.png")


def test_white_is_half_of_the_levels_and_up() -> None:
    levels = numpy.tile(numpy.arange(256, dtype=numpy.uint8), (64, 1))
    assert (read_mask(encoded(levels)).white == (levels >= 128)).all()


def test_what_is_transparent_in_a_mask_is_black() -> None:
    """An eraser's mask: white that is not there would repaint all of the image."""
    pixels = numpy.full((64, 96, 4), 255, dtype=numpy.uint8)
    pixels[:, :48, 3] = 127
    white = read_mask(encoded(pixels)).white
    assert not white[:, :48].any()
    assert white[:, 48:].all()


def test_masks_of_other_kinds_are_gray_first() -> None:
    """Pillow saturates 16-bit gray: 46 % would repaint."""
    wide = numpy.full((64, 96, 1), 30_000, dtype=numpy.uint16)
    wide[:, 48:] = 40_000
    for data in (png(wide), encoded(Image.fromarray(wide[:, :, 0] > 32_896))):
        white = read_mask(data).white
        assert (white == (numpy.arange(96) >= 48)).all()
    red_is_dark = encoded(Image.new("RGB", (64, 64), (255, 0, 0)))
    assert not read_mask(red_is_dark).white.any()


def test_a_mask_on_its_side_is_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("L", (96, 64))
    image.paste(255, (0, 0, 48, 64))
    white = read_mask(encoded(image, exif=exif)).white
    assert white.shape == (96, 64)
    assert white[:48].all()
    assert not white[48:].any()


def test_masks_that_do_not_fit_or_are_empty_are_refused() -> None:
    """diffusers inverts the box of an empty mask, and crashes."""
    picture = source(100, 80)
    with pytest.raises(UsageError, match=r"mask\.png is 80x100, and a\.png is 100x80"):
        masked_source(picture, mask(80, 100, (0, 0, 9, 9)))
    with pytest.raises(UsageError, match=r"mask\.png leaves nothing to repaint"):
        masked_source(picture, mask(100, 80))
    with pytest.raises(UsageError, match="no transparent part"):
        masked_source(picture, alpha=True)


def test_what_is_transparent_is_repainted() -> None:
    alpha = RANDOM.integers(0, 256, (80, 100), dtype=numpy.uint8)
    assert (masked_source(source(100, 80, alpha=alpha), alpha=True).white == (alpha < 128)).all()


@pytest.mark.parametrize(
    ("at", "box"),
    [
        ((900, 600, 1000, 660), (694, 374, 1206, 886)),  # 512 a side, around its middle
        ((0, 0, 40, 40), (0, 0, 512, 512)),  # moved into the source
        ((1660, 1260, 1700, 1300), (1188, 788, 1700, 1300)),
        ((200, 300, 1000, 900), (0, 144, 1200, 1056)),  # a quarter of its sides beyond each
        ((0, 0, 1700, 1300), (0, 0, 1700, 1300)),
        ((10, 600, 1690, 610), (2, 349, 1698, 861)),
    ],
)
def test_a_large_source_is_painted_in_a_box(
    at: tuple[int, int, int, int], box: tuple[int, int, int, int]
) -> None:
    assert box_of(mask(1700, 1300, at).white) == box


def test_up_to_a_megapixel_is_painted_whole() -> None:
    """The model sees all of what it edits, as in Flux2KleinInpaintPipeline."""
    assert box_of(mask(1024, 1024, (0, 0, 2, 2)).white) == (0, 0, 1024, 1024)
    assert box_of(mask(1025, 1024, (0, 0, 2, 2)).white) == (0, 0, 512, 512)


def test_a_narrow_mask_has_a_box_that_a_model_can_be_given() -> None:
    """8:1 is the limit for whatever the model sees."""
    left, top, right, bottom = box_of(mask(8000, 1100, (10, 500, 7990, 520)).white)
    assert right - left <= 8 * (bottom - top)
    assert (right - left, bottom - top) == (8000, 1008)


@given(st.data())
def test_boxes_hold_their_mask_and_stay_inside(data: st.DataObject) -> None:
    width = data.draw(st.integers(900, 2500))
    height = data.draw(st.integers(1400, 2500))
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left, width)) + 1, data.draw(st.integers(top, height)) + 1
    right, bottom = min(right, width), min(bottom, height)
    box = box_of(mask(width, height, (left, top, right, bottom)).white)
    assert 0 <= box[0] <= left < right <= box[2] <= width
    assert 0 <= box[1] <= top < bottom <= box[3] <= height
    wide, high = painted_size(box)
    assert wide * high <= 1024 * 1024
    assert (wide % 16, high % 16) == (0, 0)
    assert wide <= box[2] - box[0]
    assert high <= box[3] - box[1]
    if (box[2] - box[0]) * (box[3] - box[1]) <= 1024 * 1024:
        # Its own pixels, unless the mask needs a source's odd last ones.
        assert box[2] - box[0] - wide < 16
        assert box[3] - box[1] - high < 16


def test_the_box_of_a_recipe_is_used_or_refused() -> None:
    white = mask(1700, 1300, (900, 600, 1000, 660))
    assert masked_source(source(1700, 1300), white, box=(600, 300, 1240, 940)).painted_size == (
        640,
        640,
    )
    with pytest.raises(UsageError, match="not inside"):
        masked_source(source(1700, 1300), white, box=(600, 300, 1701, 940))


@pytest.mark.parametrize("sides", [(128, 96), (131, 99), (1280, 1024)])
def test_a_token_is_repainted_if_any_of_its_pixels_is(sides: tuple[int, int]) -> None:
    """Resized bilinearly, as in diffusers, strokes of 2, 4 and 6 pixels vanish."""
    width, height = sides
    box = (0, 0, width, height)
    for _ in range(20):
        x, y = int(RANDOM.integers(0, width)), int(RANDOM.integers(0, height))
        masked = masked_source(source(*sides), mask(*sides, (x, y, x + 1, y + 1)), box=box)
        wide, high = masked.painted_size
        tokens = masked.tokens().reshape(high // 16, wide // 16)
        wanted = numpy.zeros_like(tokens)
        # The pixel's place in what is painted, and all tokens that it touches there.
        left, right = x * wide / width / 16, (x + 1) * wide / width / 16
        top, bottom = y * high / height / 16, (y + 1) * high / height / 16
        wanted[
            int(top) : int(numpy.ceil(bottom - 1e-9)), int(left) : int(numpy.ceil(right - 1e-9))
        ] = True
        assert (tokens == wanted).all()


def test_the_model_sees_the_box_stretched_to_whole_tokens() -> None:
    """Flux2KleinInpaintPipeline stretches its source where references are cropped."""
    picture = source(131, 99)
    masked = masked_source(picture, mask(131, 99, (0, 0, 5, 5)))
    wanted = Image.fromarray(picture.rgb).resize((128, 96), Image.Resampling.LANCZOS)
    assert (masked.pixels() == numpy.asarray(wanted)).all()
    whole = masked_source(source(128, 96), mask(128, 96, (0, 0, 5, 5)))
    assert (whole.pixels() == whole.picture.rgb).all()


def test_the_model_sees_a_box_of_its_own_pixels() -> None:
    picture = source(1700, 1300)
    masked = masked_source(picture, mask(1700, 1300, (900, 600, 1000, 660)))
    assert (masked.pixels() == picture.rgb[374:886, 694:1206]).all()


def test_an_expansion_is_repainted_and_repeats_the_edge() -> None:
    """The property: the source is where it was, and all beyond it is new."""
    picture = source(100, 80)
    masked = masked_source(picture, expand=(16, 0, 32, 7))
    assert masked.white.shape == (87, 148)
    assert not masked.white[:80, 16:116].any()
    assert masked.white.sum() == 87 * 148 - 80 * 100
    assert (masked.picture.rgb[:80, 16:116] == picture.rgb).all()
    assert (masked.picture.rgb[:80, :16] == picture.rgb[:, :1]).all()
    assert (masked.picture.rgb[80:, 16:116] == picture.rgb[-1:]).all()
    assert masked.picture.kept is masked.picture.rgb
    assert masked.box == (0, 0, 148, 87)


def test_a_mask_is_of_the_image_before_it_is_expanded() -> None:
    masked = masked_source(source(100, 80), mask(100, 80, (3, 4, 5, 6)), expand=(10, 0, 0, 0))
    assert masked.white[4:6, 13:15].all()
    assert masked.white.sum() == 4 + 80 * 10


def test_a_large_expansion_is_painted_in_a_box_too() -> None:
    masked = masked_source(source(1700, 1300), expand=(0, 0, 256, 0))
    assert masked.box == (1444, 0, 1956, 1300)
    assert masked.painted_size == (512, 1296)


@pytest.mark.parametrize("expand", [(0, 0, 0, 0), (-1, 0, 5, 0), (50_000, 0, 0, 0), (0, 900, 0, 0)])
def test_expansions_that_make_no_image_are_refused(expand: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError):
        expanded(source(100, 80), expand)


def test_all_of_a_picture_is_expanded() -> None:
    """An alpha of the old size would not fit."""
    alpha = RANDOM.integers(0, 128, (80, 100), dtype=numpy.uint8)
    picture = read(
        encoded(numpy.dstack([source(100, 80).rgb, alpha])),
    )
    grown = expanded(picture, (1, 2, 3, 4))
    for array in (grown.rgb, grown.kept, grown.alpha, grown.kept_alpha):
        assert array is not None
        assert array.shape[:2] == (86, 104)
