"""Images of any mode become 8 bits a channel, each level the nearest."""

from __future__ import annotations

import numpy
import pytest
from image_files import chunk, encoded, png, tiff
from numpy.typing import NDArray
from PIL import Image

from klein_cli.errors import UsageError
from klein_cli.images.levels import narrowed
from klein_cli.images.reading import Picture, read

WIDE = numpy.random.default_rng(0).integers(0, 65536, (70, 96, 4), dtype=numpy.uint16)
SAID = "has 16 bits a channel, of which the model sees 8"


def rounded(wide: NDArray[numpy.uint16]) -> NDArray[numpy.float64]:
    """The oracle: v/257, in float64."""
    return numpy.floor(wide / 257 + 0.5)


def test_all_levels_of_16_bits_become_the_nearest_of_8() -> None:
    """Cutting the lower bits off, as Pillow does, turns 0x00ff into 0 and not 1."""
    levels = numpy.arange(65536, dtype=numpy.uint16)[:, None]
    assert (narrowed(levels) == rounded(levels)).all()


def files_of_16_bits() -> dict[str, tuple[bytes, int]]:
    """Files, and how many channels of WIDE each holds."""
    made = {f"PNG {channels}": (png(WIDE[:, :, :channels]), channels) for channels in (1, 2, 3, 4)}
    for order in "<>":
        for deflated in (False, True):
            for channels in (1, 3, 4):
                data = tiff(WIDE[:, :, :channels], order=order, deflated=deflated)
                made[f"TIFF {order} {deflated} {channels}"] = (data, channels)
    made["I;16"] = encoded(WIDE[:, :, 0]), 1
    return made


@pytest.mark.parametrize("file", files_of_16_bits().items(), ids=lambda item: item[0])
def test_files_of_16_bits_a_channel_are_read_whole(file: tuple[str, tuple[bytes, int]]) -> None:
    """Pillow keeps the upper 8 of RGB's 16 bits, and saturates gray at 255."""
    _, (data, channels) = file
    picture = read(data, name="a")
    colours = 3 if channels > 2 else 1
    assert any(SAID in note for note in picture.notes)
    assert picture.kept.dtype == numpy.uint16
    assert (picture.kept == WIDE[:, :, :colours]).all()
    if channels in (2, 4):
        assert picture.kept_alpha is not None
        assert (picture.kept_alpha == WIDE[:, :, channels - 1]).all()
        assert (picture.alpha == rounded(WIDE[:, :, channels - 1])).all()
    else:
        assert picture.alpha is None
        assert (picture.rgb == rounded(WIDE[:, :, :colours])).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_colour_of_16_bits_that_is_declared_transparent(channels: int) -> None:
    """Only the very colour: its upper half alone would take its neighbours with it."""
    wide = numpy.full((70, 96, channels), 0x1234, dtype=numpy.uint16)
    wide[:, 48:] = 0x1235
    key = wide[0, 0].astype(">u2").tobytes()
    picture = read(png(wide, chunks=chunk(b"tRNS", key)))
    assert picture.alpha is not None
    assert (picture.alpha[:, :48] == 0).all()
    assert (picture.alpha[:, 48:] == 255).all()
    assert (picture.rgb[:, :48] == 255).all()


def test_numbers_without_a_known_white_are_refused() -> None:
    """Pillow would show floating-point numbers from 0 to 1 as black."""
    for mode in ("I", "F"):
        with pytest.raises(UsageError, match="32-bit or floating-point"):
            read(encoded(Image.new(mode, (70, 96)), "TIFF"))


def modes() -> dict[str, Picture]:
    x, y = numpy.meshgrid(numpy.arange(96), numpy.arange(70))
    gray = Image.fromarray(((x + y) % 256).astype(numpy.uint8))
    palette = gray.convert("RGB").quantize(16)
    return {
        "1": read(encoded(gray.convert("1"))),
        "L": read(encoded(gray)),
        "LA": read(encoded(gray.convert("LA"))),
        "P": read(encoded(palette)),
        "GIF": read(encoded(palette, "GIF")),
    }


def test_modes_without_transparency_are_their_colours_and_opaque() -> None:
    for mode, picture in modes().items():
        assert picture.alpha is None, mode
        assert picture.notes == (), mode
        assert (picture.rgb == picture.kept).all()
    assert set(numpy.unique(modes()["1"].rgb)) == {0, 255}
    assert (modes()["L"].rgb == modes()["LA"].rgb).all()


def test_a_transparent_colour_of_a_palette_is_seen_on_white() -> None:
    """Dropped, the colour under it would steer the model."""
    indexed = numpy.tile(numpy.arange(96) // 48, (70, 1)).astype(numpy.uint8)
    image = Image.frombytes("P", (96, 70), indexed.tobytes())
    image.putpalette([200, 0, 0, 0, 0, 200])
    picture = read(encoded(image, transparency=0), name="icon.png")
    assert (picture.rgb[:, :48] == 255).all()
    assert (picture.rgb[:, 48:] == (0, 0, 200)).all()
    assert (picture.kept[:, :48] == (200, 0, 0)).all()
    assert picture.notes == ("icon.png is transparent in places: the model sees it on white",)
