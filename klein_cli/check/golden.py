"""The image that `tiny` must draw, and the edit of it that it must make: what `klein doctor`
compares this machine's own with.

`scripts/make_golden.py` draws both again after tiny's weights have changed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from klein_cli.checkpoints.folder import digest, weight_files
from klein_cli.checkpoints.source import PARTS
from klein_cli.images.inputs import references
from klein_cli.recipe import Recipe

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from klein_cli.images.store import ImageStore

FILE = Path(__file__).with_name("golden.png")
EDITED = Path(__file__).with_name("golden_edited.png")
WEIGHTS_KEY = "weights"
RECIPE = Recipe(
    prompt="a red circle on a white background",
    seed=1,
    width=128,
    height=128,
    steps=4,
    guidance=1.0,
    model="tiny",
)
EDIT_PROMPT = "make the circle blue"
FARTHEST = 2
"""Levels of 255 that a CPU's image may differ from it: threads and instructions make 1."""


@dataclass(frozen=True, slots=True)
class Golden:
    """`pixels` (128, 128, 3) uint8, and the `weights_digest` of the tiny that drew them."""

    pixels: NDArray[numpy.uint8]
    weights: str


def edit(images: ImageStore) -> Recipe:
    """The recipe of the edit, whose reference is the golden image, put into `images`."""
    return replace(RECIPE, prompt=EDIT_PROMPT, references=references(images, [FILE]))


def read_golden(path: Path = FILE) -> Golden:
    """A golden image. Raises OSError when it is missing or not an image."""
    import numpy
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        weights = str(image.info.get(WEIGHTS_KEY, ""))
        return Golden(numpy.asarray(image.convert("RGB")), weights)


def weights_digest(root: Path) -> str:
    """One hash of all weights of the model in `root`. Raises ModelError when there are none."""
    together = hashlib.sha256()
    for folder in PARTS:
        for path in weight_files(root / folder):
            together.update(f"{folder}/{path.name} {digest(path)}\n".encode())
    return together.hexdigest()
