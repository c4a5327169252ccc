"""An image file -> the pixels that a model sees, those that are kept, and what is said."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy
import pytest
from image_files import encoded
from PIL import Image, ImageOps, PngImagePlugin

from klein_cli.images.reading import probe, read

RANDOM = numpy.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (70, 96, 3), dtype=numpy.uint8)
_ORIENTATION, _COPYRIGHT, _GPS = 0x0112, 0x8298, 0x8825


def test_plain_colours_are_read_as_they_are(tmp_path: Path) -> None:
    """A conversion that moves untagged colours would lose parity with diffusers."""
    path = tmp_path / "a.png"
    path.write_bytes(encoded(COLOURS))
    picture = read(path)
    assert (picture.rgb == COLOURS).all()
    assert picture.rgb is picture.kept
    assert (picture.name, picture.notes, picture.profile) == ("a.png", (), None)
    assert picture.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert probe(path) == probe(path.read_bytes(), name="a.png")


def turned(orientation: int) -> Image.Image:
    """COLOURS as a camera stores them that writes this orientation."""
    how = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = Image.fromarray(COLOURS)
    return image if how is None else image.transpose(how)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_all_orientations_of_an_image_are_one(kind: str, orientation: int) -> None:
    """Phones store portraits on their side, and say so in EXIF."""
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(turned(orientation), kind, exif=exif, **lossless)
    picture, found = read(data), probe(data)
    assert (picture.rgb == COLOURS).all()
    assert (found.width, found.height) == (96, 70)


def test_a_jpeg_is_what_diffusers_loads() -> None:
    """`load_image` transposes by EXIF, then converts to RGB."""
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    data = encoded(turned(6), "JPEG", exif=exif, quality=95)
    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert (read(data).rgb == numpy.asarray(theirs)).all()


def test_the_alpha_of_an_image_on_its_side_turns_with_it() -> None:
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    alpha = RANDOM.integers(0, 256, (70, 96), dtype=numpy.uint8)
    image = Image.fromarray(numpy.dstack([COLOURS, alpha])).transpose(Image.Transpose.ROTATE_90)
    picture = read(encoded(image, exif=exif))
    assert (picture.alpha == alpha).all()
    assert (picture.kept == COLOURS).all()


def test_transparent_parts_are_seen_on_white() -> None:
    """Dropped, what lies under the transparency would reach the model."""
    alpha = RANDOM.integers(0, 256, (70, 96), dtype=numpy.uint8)
    picture = read(encoded(numpy.dstack([COLOURS, alpha])), name="logo.png")
    share = alpha[:, :, None] / 255
    oracle = COLOURS * share + 255 * (1 - share)
    assert numpy.abs(picture.rgb - oracle).max() <= 0.5
    assert (picture.kept == COLOURS).all()
    assert (picture.alpha == alpha).all()
    assert picture.notes == ("logo.png is transparent in places: the model sees it on white",)


def test_an_alpha_that_hides_nothing_is_none() -> None:
    opaque = numpy.dstack([COLOURS, numpy.full((70, 96), 255, dtype=numpy.uint8)])
    picture = read(encoded(opaque))
    assert picture.alpha is None
    assert picture.notes == ()


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PNG"])
def test_the_first_frame_of_an_animation_is_used_and_said(kind: str) -> None:
    first, other = Image.new("RGB", (70, 96), "red"), Image.new("RGB", (70, 96), "blue")
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[other], **options)
    picture = read(data, name="a")
    assert (picture.rgb == (255, 0, 0)).all()
    assert picture.notes == ("a has several frames: only the first is used",)


def test_the_first_image_of_a_phones_file_of_two_is_the_photograph() -> None:
    """MPO: a JPEG with a preview or a depth behind it, of which nobody needs to hear."""
    first, other = Image.new("RGB", (70, 96), "red"), Image.new("RGB", (70, 96), "blue")
    picture = read(encoded(first, "MPO", save_all=True, append_images=[other]))
    assert (picture.rgb.astype(int) - (255, 0, 0)).max() <= 2
    assert picture.notes == ()


def test_resolution_and_copyright_are_told_and_the_place_is_not() -> None:
    exif = Image.Exif()
    exif[_COPYRIGHT] = "Ada\n  Lovelace\x07"
    exif.get_ifd(_GPS)[1] = "N"
    for kind in ("JPEG", "TIFF"):
        picture = read(encoded(COLOURS, kind, exif=exif, dpi=(300, 150)))
        assert picture.copyright == "Ada Lovelace"
        assert picture.dpi == (300, 150)
    text = PngImagePlugin.PngInfo()
    text.add_text("Copyright", "Ada")
    assert read(encoded(COLOURS, pnginfo=text)).copyright == "Ada"


def test_a_file_without_them_has_none() -> None:
    for kind in ("PNG", "TIFF", "JPEG"):
        picture = read(encoded(COLOURS, kind))
        assert (picture.copyright, picture.dpi) == (None, None)


def test_a_broken_exif_block_says_nothing() -> None:
    for block in (b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0" + b"\xff" * 60_000):
        picture = read(encoded(COLOURS, "JPEG", exif=block))
        assert picture.rgb.shape == COLOURS.shape


def test_what_a_picture_takes_of_memory_counts_each_array_once() -> None:
    assert read(encoded(COLOURS)).nbytes == COLOURS.nbytes
