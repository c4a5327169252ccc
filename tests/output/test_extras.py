"""What an edit's file says of its colours, and what it takes over from its source."""

from __future__ import annotations

import io
from typing import Any

import numpy
import pytest
from image_files import ADOBE_RGB, rgb_profile
from numpy.typing import NDArray
from PIL import Image

from klein_cli.errors import KleinError
from klein_cli.images.reading import read
from klein_cli.output.extras import Extras
from klein_cli.output.image import Image as Edit
from klein_cli.output.png import encode

RANDOM = numpy.random.default_rng(0)
RECORD = {"format": 3, "recipe": {"prompt": "a fox"}}
PROFILE = rgb_profile(ADOBE_RGB, 2.2, "Adobe RGB")
EXTENSIONS = (".png", ".jpg", ".webp")
_COPYRIGHT, _COLOUR_SPACE, _EXIF_IFD = 0x8298, 0xA001, 0x8769


def pixels(channels: int = 3, dtype: Any = numpy.uint8) -> NDArray[Any]:
    most = int(numpy.iinfo(dtype).max) + 1
    return RANDOM.integers(0, most, (70, 96, channels), dtype=dtype)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_an_edit_says_that_its_colours_are_srgb(extension: str) -> None:
    """A viewer on a wide screen shows untagged colours too colourful."""
    image = opened(encode(pixels(), extension, RECORD, "", Extras(says_srgb=True)))
    if extension == ".png":
        assert image.info["srgb"] == 0
    else:
        assert image.getexif().get_ifd(_EXIF_IFD)[_COLOUR_SPACE] == 1
    assert "icc_profile" not in image.info


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_the_profile_of_the_source_is_embedded(extension: str) -> None:
    image = opened(encode(pixels(), extension, RECORD, "", Extras(profile=PROFILE)))
    assert image.info["icc_profile"] == PROFILE
    assert "srgb" not in image.info
    assert image.getexif().get_ifd(_EXIF_IFD).get(_COLOUR_SPACE) != 1


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_resolution_and_copyright_are_extras(extension: str) -> None:
    extras = Extras(dpi=(300, 150), copyright="© Ada")
    data = encode(pixels(), extension, RECORD, "", extras)
    assert read(data).copyright == "© Ada"
    if extension == ".webp":
        assert opened(data).getexif()[0x011A] == 300
    else:
        assert tuple(map(round, opened(data).info["dpi"])) == (300, 150)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_without_metadata_only_the_colours_are_told(extension: str) -> None:
    extras = Extras(profile=PROFILE, dpi=(300, 300), copyright="Ada")
    image = opened(encode(pixels(), extension, None, "", extras))
    assert image.info["icc_profile"] == PROFILE
    assert image.info.get("dpi") != (300, 300)
    assert "Copyright" not in image.info
    assert _COPYRIGHT not in image.getexif()


@pytest.mark.parametrize("extension", [".png", ".webp"])
@pytest.mark.parametrize("channels", [3, 4])
def test_kept_pixels_are_kept_bit_for_bit(extension: str, channels: int) -> None:
    """libwebp drops the colours under full transparency unless it is told not to."""
    wanted = pixels(channels)
    wanted[:20, :, 3:] = 0
    data = encode(wanted, extension, RECORD, "", Extras(lossless=True))
    assert (numpy.asarray(opened(data)) == wanted).all()


@pytest.mark.parametrize("channels", [3, 4])
def test_a_png_keeps_16_bits_a_channel(channels: int) -> None:
    wanted = pixels(channels, numpy.uint16)
    picture = read(encode(wanted, ".png", RECORD, "", Extras(says_srgb=True)))
    assert (picture.kept == wanted[:, :, :3]).all()
    if channels == 4:
        assert (picture.kept_alpha == wanted[:, :, 3]).all()


def test_other_files_round_16_bits_to_8() -> None:
    wide = numpy.full((70, 96, 3), 100 * 257 + 129, dtype=numpy.uint16)
    for extension in (".webp", ".jpg"):
        data = encode(wide, extension, RECORD, "", Extras())
        assert numpy.abs(numpy.asarray(opened(data)).astype(int) - 101).max() <= 1


def test_transparent_pixels_lie_over_white_in_a_jpeg() -> None:
    clear = numpy.zeros((70, 96, 4), dtype=numpy.uint8)
    image = opened(encode(clear, ".jpg", RECORD, "", Extras()))
    assert image.mode == "RGB"
    assert numpy.asarray(image).min() >= 254


def test_16_bits_are_not_lost_where_they_were_promised() -> None:
    with pytest.raises(KleinError, match="only PNG keeps the 16 bits"):
        encode(pixels(3, numpy.uint16), ".webp", RECORD, "", Extras(lossless=True))


def test_the_same_edit_gives_the_same_bytes() -> None:
    """A profile with the time of day in it would not."""
    wanted = pixels(4)
    for extension in (".png", ".webp"):
        first = encode(wanted, extension, RECORD, "", Extras(dpi=(72, 72)))
        assert first == encode(wanted, extension, RECORD, "", Extras(dpi=(72, 72)))


def test_the_librarys_image_is_one_for_pillow_too() -> None:
    """16 bits of RGB are more than Pillow holds."""
    wide = pixels(4, numpy.uint16)
    image = Edit(pixels=wide, extras=Extras(profile=PROFILE)).to_pil()
    assert (image.mode, image.info["icc_profile"]) == ("RGBA", PROFILE)
    assert (numpy.asarray(image) == numpy.floor(wide / 257 + 0.5)).all()
