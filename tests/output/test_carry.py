"""What of the edited image is in the file of its result."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy
import pytest
from given_images import edit_of, photo, transparent
from image_files import ADOBE_RGB, chunk, encoded, png, rgb_profile
from PIL import Image, ImageCms

from klein_cli.errors import KleinError
from klein_cli.images.reading import read
from klein_cli.images.store import ImageStore
from klein_cli.output.carry import DRAWN, Carry
from klein_cli.output.png import encode
from klein_cli.output.reading import read_pixels
from klein_cli.recipe import Mask, Recipe, Reference

pytestmark = pytest.mark.usefixtures("empty_folder")

EDIT = Carry(edit=True)
WIDE_GAMUT = rgb_profile(ADOBE_RGB, 2.2, "Adobe RGB")
MASK = Mask(alpha=True, box=(0, 0, 96, 64))


def written(
    path: Path, extension: str, carry: Carry, *, mask: Mask | None = None, pixels: Any = None
) -> Image.Image:
    """The result of an edit of `path`, read back from its file."""
    store = ImageStore()
    probe = store.add(path)
    reference = Reference(sha256=probe.sha256, name=probe.name, width=96, height=64)
    recipe = edit_of(reference, mask=mask)
    if pixels is None:
        pixels = numpy.full((64, 96, 3), 99, numpy.uint8)
    pixels, extras = carry.of(recipe, pixels, store)
    image = Image.open(io.BytesIO(encode(pixels, extension, {"a": 1}, "a", extras)))
    image.load()
    return image


def owned(path: str) -> Path:
    """A photo with a copyright, 300 dots an inch, and the place where it was taken."""
    exif = Image.Exif()
    exif[0x8298] = "(c) Ada"
    exif.get_ifd(0x8825)[1] = "N"
    Image.open(photo(path)).save(path, exif=exif, dpi=(300, 300))
    return Path(path)


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp"])
def test_whose_an_image_is_goes_with_it_and_where_it_was_taken_does_not(extension: str) -> None:
    image = written(owned("a.jpg"), extension, EDIT)
    assert "(c) Ada" in (image.getexif().get(0x8298), image.info.get("Copyright"))
    assert not image.getexif().get_ifd(0x8825)
    dpi = image.getexif()[0x011A] if extension == ".webp" else image.info["dpi"][0]
    assert round(dpi) == 300


def test_an_image_that_was_drawn_after_others_has_nothing_of_them() -> None:
    image = written(owned("a.jpg"), ".png", DRAWN)
    assert "Copyright" not in image.info
    assert "dpi" not in image.info
    assert image.info["srgb"] == 0


def test_a_transparent_images_alpha_comes_back_unless_it_is_not_wanted() -> None:
    """A logo that was cut out is of no use on white."""
    path = transparent("a.png")
    image = written(path, ".png", EDIT)
    assert image.mode == "RGBA"
    assert image.getchannel("A").getextrema() == (0, 255)
    assert image.getchannel("A").getpixel((0, 0)) == 0
    assert written(path, ".webp", EDIT).mode == "RGBA"
    assert written(path, ".png", Carry(edit=True, opaque=True)).mode == "RGB"
    assert written(path, ".jpg", EDIT).mode == "RGB"
    assert written(path, ".png", DRAWN).mode == "RGB"


def test_kept_pixels_stay_in_their_profile_and_the_file_says_which() -> None:
    """A viewer would show them in other colours."""
    path, profile = photo("a.png"), _strange_profile()
    Image.open(path).save(path, icc_profile=profile)
    for extension in (".png", ".webp"):
        assert written(path, extension, DRAWN, mask=MASK).info["icc_profile"] == profile
    # What was painted whole is sRGB, and says so.
    image = written(path, ".png", EDIT)
    assert "icc_profile" not in image.info
    assert image.info["srgb"] == 0


@pytest.mark.parametrize("extension", [".png", ".webp"])
def test_kept_pixels_are_written_bit_for_bit(extension: str) -> None:
    noise = numpy.random.default_rng(1).integers(0, 256, (64, 96, 4), numpy.uint8)
    image = written(transparent("a.png"), extension, DRAWN, mask=MASK, pixels=noise)
    assert numpy.array_equal(numpy.asarray(image), noise)


def test_16_bits_are_kept_by_png_and_refused_where_they_would_be_lost() -> None:
    wide = numpy.random.default_rng(1).integers(0, 65536, (64, 96, 3), numpy.uint16)
    path = photo("a.png")
    image = written(path, ".png", DRAWN, mask=MASK, pixels=wide)
    assert image.size == (96, 64)
    with pytest.raises(KleinError, match="only PNG keeps the 16 bits"):
        written(path, ".webp", DRAWN, mask=MASK, pixels=wide)
    free = Mask(alpha=True, box=(0, 0, 96, 64), keep=False)
    narrow = written(path, ".webp", DRAWN, mask=free, pixels=numpy.full_like(wide, 257 * 7))
    assert abs(int(numpy.asarray(narrow).mean()) - 7) <= 1


@pytest.mark.parametrize(("extension", "wide"), [(".png", False), (".webp", False), (".png", True)])
def test_what_a_mask_keeps_is_the_files_own_all_the_way(
    extension: str, wide: bool, tmp_path: Path
) -> None:
    """From a transparent source in a wide space to the result's file: nothing is rounded."""
    random = numpy.random.default_rng(0)
    dtype = numpy.uint16 if wide else numpy.uint8
    source = random.integers(0, numpy.iinfo(dtype).max, (70, 96, 4), dtype, endpoint=True)
    white = numpy.zeros((70, 96), numpy.uint8)
    white[20:50, 30:60] = 255
    chunks = chunk(b"iCCP", b"icc\0\0" + zlib.compress(WIDE_GAMUT))
    store = ImageStore()
    given = store.add(png(source, chunks=chunks), name="a.png")
    mask = store.add(encoded(white), name="m.png")
    recipe = Recipe(
        prompt="a",
        seed=1,
        width=96,
        height=64,
        steps=1,
        guidance=1.0,
        model="tiny",
        references=(Reference(sha256=given.sha256, name="a.png", width=96, height=64),),
        mask=Mask(sha256=mask.sha256, name="m.png", box=(0, 0, 96, 70), blur=2),
    )
    painted = random.integers(0, 256, (64, 96, 3), numpy.uint8)
    pixels = store.masked(recipe).composite(painted, blur=2)
    pixels, extras = EDIT.of(recipe, pixels, store)
    path = tmp_path / f"a{extension}"
    path.write_bytes(encode(pixels, extension, {"a": 1}, "a", extras))
    found = read_pixels(path)
    assert (found[white == 0] == source[white == 0]).all()
    assert (found[white > 0] != source[white > 0]).any()
    assert read(path).profile == WIDE_GAMUT


def _strange_profile() -> bytes:
    """sRGB's profile with its red and blue changed places."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = data.index(b"rXYZ"), data.index(b"bXYZ")
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data)
