"""Colours with a profile: sRGB for the model, and back again for the file."""

from __future__ import annotations

import numpy
import pytest
from image_files import (
    ADOBE_GAMMA,
    ADOBE_RGB,
    DISPLAY_P3,
    cmyk_profile,
    encoded,
    gray_profile,
    rgb_profile,
)
from numpy.typing import NDArray
from PIL import Image, ImageCms

from klein_cli.images.colour import MAX_PROFILE_BYTES, from_srgb
from klein_cli.images.reading import read

COLOURS = numpy.random.default_rng(0).integers(0, 256, (70, 96, 3), dtype=numpy.uint8)
ADOBE = rgb_profile(ADOBE_RGB, ADOBE_GAMMA, "Adobe RGB (1998)")
# X, Y and Z of sRGB's primaries, adapted to D50.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def to_srgb(pixels: NDArray[numpy.uint8]) -> NDArray[numpy.float64]:
    """The oracle: Adobe RGB -> XYZ -> sRGB in float64, clipped."""
    xyz = ((pixels / 255) ** ADOBE_GAMMA) @ numpy.array(ADOBE_RGB)
    return encoded_levels(numpy.clip(xyz @ numpy.linalg.inv(numpy.array(SRGB)), 0, 1))


def encoded_levels(linear: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """Light from 0 to 1 -> sRGB's levels from 0 to 255."""
    low = linear <= 0.0031308
    return 255 * numpy.where(low, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_adobe_rgb_is_converted_for_the_model_and_kept_as_it_is() -> None:
    """Unconverted, a brand's red moves by 40 levels."""
    picture = read(encoded(COLOURS, icc_profile=ADOBE), name="shot.png")
    assert numpy.abs(picture.rgb - to_srgb(COLOURS)).max() <= 2
    assert numpy.abs(picture.rgb.astype(int) - COLOURS).max() > 40
    assert (picture.kept == COLOURS).all()
    assert picture.profile == ADOBE
    assert picture.notes == (
        "the colours of shot.png are converted from Adobe RGB (1998) to sRGB for the model",
    )


@pytest.mark.parametrize("primaries", [ADOBE_RGB, DISPLAY_P3])
def test_colours_go_into_a_profile_and_back(primaries: tuple[tuple[float, ...], ...]) -> None:
    """What was painted must look the same in the source's own profile."""
    profile = rgb_profile(primaries, 2.2, "wide")
    stored = from_srgb(COLOURS, profile)
    assert (stored != COLOURS).any()
    back = read(encoded(stored, icc_profile=profile))
    assert numpy.abs(back.rgb.astype(int) - COLOURS).mean() < 0.5
    # Eight bits of a wider space hold dark reds beside bright greens coarsely: measured 10.
    assert numpy.abs(back.rgb.astype(int) - COLOURS).max() <= 12


def test_an_srgb_profile_changes_nothing_and_stays() -> None:
    """Phones tag plain photographs: they must be what diffusers reads, to the bit."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = read(encoded(COLOURS, icc_profile=profile))
    assert (picture.rgb == COLOURS).all()
    assert picture.profile == profile
    assert picture.notes == ()
    assert from_srgb(COLOURS, profile) is COLOURS


@pytest.mark.parametrize(
    "profile",
    [b"broken" * 50, ADOBE[:300], gray_profile(2.2, "gray"), bytes(MAX_PROFILE_BYTES + 1)],
    ids=["broken", "cut", "of gray", "huge"],
)
def test_a_profile_that_cannot_be_used_is_said_and_left_out(profile: bytes) -> None:
    """An image is not lost for its profile; nor is a profile believed that says nothing."""
    picture = read(encoded(COLOURS, "TIFF", icc_profile=profile), name="a.tif")
    assert (picture.rgb == COLOURS).all()
    assert picture.profile is None
    (note,) = picture.notes
    assert note.startswith("the colour profile of a.tif is not used")
    assert "\n" not in note


def test_a_gray_profile_cannot_be_kept_and_is_converted() -> None:
    """The result is RGB, and cannot hold a profile of gray."""
    gray = COLOURS[:, :, 0]
    picture = read(encoded(gray, icc_profile=gray_profile(1.8, "Gray 1.8")), name="a.png")
    assert numpy.abs(picture.rgb[:, :, 0] - encoded_levels((gray / 255) ** 1.8)).max() <= 2
    assert numpy.abs(picture.rgb[:, :, 0].astype(int) - gray).max() > 10
    assert (picture.kept == picture.rgb).all()
    assert picture.profile is None
    assert picture.notes == ("the colours of a.png are converted from Gray 1.8 to sRGB",)


def test_gray_with_an_rgb_profile_is_of_that_profile() -> None:
    picture = read(encoded(COLOURS[:, :, 0], icc_profile=ADOBE))
    assert picture.profile == ADOBE
    assert (picture.kept == COLOURS[:, :, :1]).all()


def cmyk(inks: NDArray[numpy.uint8]) -> Image.Image:
    return Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes())


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_is_converted_by_its_profile(kind: str) -> None:
    """Photoshop's JPEG files hold their inks inverted: no ink must be white."""
    inks = numpy.zeros((64, 128, 4), dtype=numpy.uint8)
    inks[:, 64:, 0] = 255
    data = encoded(cmyk(inks), kind, icc_profile=cmyk_profile("press"))
    picture = read(data, name="ad")
    assert (picture.rgb[:, :56] == 255).all()
    # The profile's one ink halves the lightness: L* 50 is 119 of sRGB.
    assert numpy.abs(picture.rgb[:, 72:].astype(int) - 119).max() <= 2
    assert picture.profile is None
    assert picture.notes == ("the colours of ad are converted from press to sRGB",)


def test_the_black_of_a_press_is_black() -> None:
    """Without black point compensation, text in four inks would be gray on a screen."""
    inks = numpy.full((64, 64, 4), 255, dtype=numpy.uint8)
    picture = read(encoded(cmyk(inks), "TIFF", icc_profile=cmyk_profile("press")))
    assert picture.rgb.max() <= 2


def test_cmyk_without_a_profile_is_said_to_be_approximate() -> None:
    inks = numpy.zeros((64, 64, 4), dtype=numpy.uint8)
    picture = read(encoded(cmyk(inks), "JPEG"), name="ad")
    assert (picture.rgb == 255).all()
    assert "approximate" in picture.notes[0]


def test_lab_is_converted() -> None:
    lab = Image.new("LAB", (70, 96), (128, 128, 128))
    picture = read(encoded(lab, "TIFF"))
    assert numpy.abs(picture.rgb.astype(int) - 119).max() <= 2
