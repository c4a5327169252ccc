"""The PNG encoder beside Pillow's quickest: bytes and milliseconds, over a set of kinds of images.

    python scripts/measure_png.py [PICTURE...]

Pictures given, or the photographs that come with scikit-image where it is installed, cut and
enlarged to 1024x1024; then klein's own images in docs/images, soft clouds with and without grain,
noise, and one flat colour.
Pillow's is level 1 with run lengths, as klein wrote until its version 0.1.
"""

from __future__ import annotations

import argparse
import io
import os
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from klein_cli.output.png_encoder import encode_png

SIDE = 1024
REPEATS = 7
THREADS = (1, 2, 4, 8, 16)
NAMES = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina")
DRAWN = Path(__file__).parents[1] / "docs" / "images"
Pixels = NDArray[np.uint8]


def photographs(paths: list[Path]) -> Iterator[tuple[str, Pixels]]:
    """The pictures, cut square and brought to size."""
    if paths:
        images = {path.name: Image.open(path) for path in paths}
    elif find_spec("skimage") is None:
        print("no photographs: scikit-image is not installed")
        return
    else:
        from skimage import data

        images = {name: Image.fromarray(getattr(data, name)()) for name in NAMES}
    for name, image in images.items():
        side = min(image.size)
        square = image.convert("RGB").crop((0, 0, side, side))
        yield name, np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def made() -> Iterator[tuple[str, Pixels]]:
    """Kinds of images that need no file but klein's own."""
    for path in sorted(DRAWN.glob("*.png")):
        yield path.name, np.asarray(Image.open(path).convert("RGB"))
    generator = np.random.default_rng(0)
    soft = clouds(generator)
    yield "clouds", soft
    grain = generator.normal(0, 4, soft.shape)
    yield "clouds with grain", (soft + grain).clip(0, 255).astype(np.uint8)
    yield "noise", generator.integers(0, 256, soft.shape, dtype=np.uint8)
    yield "one colour", np.full_like(soft, 77)


def clouds(generator: np.random.Generator) -> Pixels:
    """Coarse noise under finer and weaker noise, as a photograph's spectrum falls."""
    total = np.zeros((SIDE, SIDE, 3))
    for side in (4, 8, 16, 32, 64, 128, 256):
        coarse = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        enlarged = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        total += np.asarray(enlarged) / side
    spread = (total - total.min()) / np.ptp(total)
    return np.asarray((255 * spread).round(), dtype=np.uint8)


def by_pillow(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def milliseconds(call: Callable[[], object]) -> float:
    """The least of several."""
    spent = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return 1000 * min(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="*", type=Path)
    images = [*photographs(parser.parse_args().pictures), *made()]
    print(f"{os.cpu_count()} cores, zlib {zlib.ZLIB_RUNTIME_VERSION}")
    heads = "".join(f"{threads:>8}" for threads in THREADS)
    print(f"{'':28}{'Pillow':>10}{'klein':>10}{'ratio':>8} |{'Pillow':>8}{heads} threads, ms")
    whole = [0, 0]
    for name, pixels in images:
        sizes = [len(by_pillow(pixels)), len(encode_png(pixels))]
        whole = [sum(pair) for pair in zip(whole, sizes, strict=True)]
        ways = [partial(by_pillow, pixels)]
        ways += [partial(encode_png, pixels, threads=threads) for threads in THREADS]
        shown = "".join(f"{milliseconds(way):8.1f}" for way in ways)
        print(f"{name:28}{sizes[0]:10}{sizes[1]:10}{sizes[1] / sizes[0]:8.3f} |{shown}", flush=True)
    print(f"{'all':28}{whole[0]:10}{whole[1]:10}{whole[1] / whole[0]:8.3f}")


if __name__ == "__main__":
    main()
