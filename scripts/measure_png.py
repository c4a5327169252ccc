"""What zlib's levels and strategies cost and save on photographs of 1024x1024, as PNG.

    python scripts/measure_png.py [PICTURE...]

Without pictures, those that come with scikit-image, enlarged. Prints the range over all of them.
"""

from __future__ import annotations

import argparse
import io
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

SIDE = 1024
WAYS = {
    "6, default": {"compress_level": 6},
    "1, default": {"compress_level": 1},
    "1, run-length": {"compress_level": 1, "compress_type": zlib.Z_RLE},
    "1, Huffman only": {"compress_level": 1, "compress_type": zlib.Z_HUFFMAN_ONLY},
    "0": {"compress_level": 0},
}
NAMES = ("astronaut", "coffee", "chelsea", "rocket", "cat", "hubble_deep_field", "retina")


def photographs(paths: list[Path]) -> Iterator[Image.Image]:
    """The pictures, cut square and brought to size."""
    if paths:
        images = [Image.open(path) for path in paths]
    else:
        from skimage import data

        images = [Image.fromarray(getattr(data, name)()) for name in NAMES]
    for image in images:
        side = min(image.size)
        square = image.convert("RGB").crop((0, 0, side, side))
        yield square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="*", type=Path)
    images = list(photographs(parser.parse_args().pictures))
    for name, options in WAYS.items():
        milliseconds, megabytes = [], []
        for image in images:
            buffer = io.BytesIO()
            started = time.perf_counter()
            image.save(buffer, "PNG", **options)
            milliseconds.append(1000 * (time.perf_counter() - started))
            megabytes.append(len(buffer.getvalue()) / 1e6)
        print(
            f"{name:>16}  {min(milliseconds):4.0f} to {max(milliseconds):4.0f} ms"
            f"  {min(megabytes):.2f} to {max(megabytes):.2f} MB"
        )


if __name__ == "__main__":
    main()
