"""A browser reads the same pixels out of our PNGs. Skipped where there is no Chromium."""

from __future__ import annotations

import base64

import numpy
import pytest
from browser import CHROMIUM, DRIVER, browsing

from klein_cli.output.png_encoder import encode_png

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver here"
    ),
]

READ = """
const [address, done] = arguments, image = new Image();
image.onerror = () => done(null);
image.onload = () => {
  const canvas = new OffscreenCanvas(image.width, image.height), pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const shown = pen.getImageData(0, 0, image.width, image.height).data;
  done(btoa(Array.from(shown, (byte) => String.fromCharCode(byte)).join("")));
};
image.src = address;
"""


@pytest.mark.parametrize("levels", [256, 3])
def test_pixels_are_shown_as_they_were(levels: int) -> None:
    pixels = numpy.random.default_rng(0).integers(0, levels, (300, 400, 3), dtype=numpy.uint8)
    address = "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode()
    with browsing() as browser:
        shown = browser.run_async(READ, address)
    assert shown is not None, "the browser refuses the file"
    read = numpy.frombuffer(base64.b64decode(shown), dtype=numpy.uint8).reshape(300, 400, 4)
    assert numpy.array_equal(read[..., :3], pixels)
