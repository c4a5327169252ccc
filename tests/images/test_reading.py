"""An image file -> pixels that a model can be given."""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image

from klein_cli.images.reading import read


def test_plain_colours_are_read_as_they_are(tmp_path: Path) -> None:
    """A conversion that moves untagged colours would lose parity with diffusers."""
    pixels = numpy.random.default_rng(0).integers(0, 256, (70, 96, 3), dtype=numpy.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = read(tmp_path / "a.png")
    assert (picture.rgb == pixels).all()
    assert picture.rgb is picture.kept
