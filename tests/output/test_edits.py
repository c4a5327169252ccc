"""From what a model painted to the pixels of the file: masks, alpha, profiles, depths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from image_files import ADOBE_RGB, encoded, png, rgb_profile
from numpy.typing import NDArray

from klein_cli.images.reading import read
from klein_cli.images.store import ImageStore
from klein_cli.output.carried import Carried
from klein_cli.output.edits import finished, what_is_lost
from klein_cli.output.png import encode
from klein_cli.output.reading import read_pixels
from klein_cli.recipe import Mask, Recipe, Reference

RANDOM = numpy.random.default_rng(0)
PROFILE = rgb_profile(ADOBE_RGB, 2.2, "Adobe RGB")


def levels(*shape: int) -> NDArray[numpy.uint8]:
    return RANDOM.integers(0, 256, shape, dtype=numpy.uint8)


PAINTED = levels(64, 96, 3)
WHITE = numpy.zeros((70, 96), dtype=numpy.uint8)
WHITE[20:50, 30:60] = 255


def edit(store: ImageStore, source: bytes, *, masked: bool = False, **changed: Any) -> Recipe:
    """A recipe for `source`, of 96x70 pixels, whose images are in the store."""
    found = store.add(source, name="source.png")
    reference = Reference(sha256=found.sha256, name="source.png", width=96, height=64)
    mask = None
    if masked:
        digest = store.add(encoded(WHITE), name="mask.png").sha256
        mask = Mask(sha256=digest, name="mask.png", box=(0, 0, 96, 70), **changed)
    return Recipe(
        prompt="a fox",
        seed=1,
        width=96,
        height=64,
        steps=4,
        guidance=1.0,
        model="tiny",
        references=(reference,),
        mask=mask,
    )


def test_an_image_of_words_alone_stays_as_it_was_painted() -> None:
    recipe = Recipe(prompt="a", seed=1, width=96, height=64, steps=4, guidance=1.0, model="tiny")
    pixels, carried = finished(recipe, PAINTED, ImageStore())
    assert pixels is PAINTED
    assert carried is None


def test_an_edit_without_a_mask_is_srgb_and_opaque() -> None:
    store = ImageStore()
    source = encoded(levels(70, 96, 4), icc_profile=PROFILE, dpi=(300, 300))
    pixels, carried = finished(edit(store, source), PAINTED, store)
    assert pixels is PAINTED
    assert carried is not None
    assert (carried.profile, carried.lossless) == (None, False)
    assert tuple(map(round, carried.dpi or ())) == (300, 300)


def test_the_alpha_of_a_transparent_image_comes_back() -> None:
    store = ImageStore()
    source = levels(70, 96, 4)
    pixels, _ = finished(edit(store, encoded(source)), PAINTED, store, opaque=False)
    assert (pixels[:, :, :3] == PAINTED).all()
    assert (pixels[:, :, 3] == source[3:67, :, 3]).all()


@pytest.mark.parametrize("extension", [".png", ".webp"])
def test_a_masked_edit_keeps_the_file_outside_the_mask(extension: str, tmp_path: Path) -> None:
    """All the way to the file and back, in the source's own profile."""
    store, source = ImageStore(), levels(70, 96, 4)
    recipe = edit(store, encoded(source, icc_profile=PROFILE), masked=True, blur=2)
    pixels, carried = finished(recipe, PAINTED, store, opaque=False)
    assert carried == Carried(profile=PROFILE, lossless=True)
    path = tmp_path / f"a{extension}"
    path.write_bytes(encode(pixels, extension, {"format": 3}, "", carried))
    found = read_pixels(path)
    assert (found[WHITE == 0] == source[WHITE == 0]).all()
    assert (found[WHITE > 0] != source[WHITE > 0]).any()
    assert read(path).profile == PROFILE


def test_a_masked_edit_of_16_bits_keeps_them(tmp_path: Path) -> None:
    store = ImageStore()
    source = RANDOM.integers(0, 65536, (70, 96, 3), dtype=numpy.uint16)
    pixels, carried = finished(edit(store, png(source), masked=True), PAINTED, store)
    path = tmp_path / "a.png"
    path.write_bytes(encode(pixels, ".png", {"format": 3}, "", carried))
    found = read_pixels(path)
    assert (found[WHITE == 0] == source[WHITE == 0]).all()


def test_the_blur_of_a_recipe_softens_its_edge() -> None:
    store, source = ImageStore(), numpy.zeros((70, 96, 3), dtype=numpy.uint8)
    painted = numpy.full_like(PAINTED, 100)
    found = [
        finished(edit(store, encoded(source), masked=True, blur=blur), painted, store)[0][20, 40, 0]
        for blur in (0, 1, 3)
    ]
    assert found == [100, 50, 25]


def test_without_keeping_all_is_what_was_painted() -> None:
    store = ImageStore()
    recipe = edit(store, encoded(levels(70, 96, 3)), masked=True, keep=False)
    pixels, carried = finished(recipe, numpy.full_like(PAINTED, 7), store)
    assert (pixels == 7).all()
    assert carried == Carried(lossless=False)


def test_what_a_file_cannot_keep_is_told() -> None:
    eight, sixteen = (
        read(encoded(levels(70, 96, 3))),
        read(png(RANDOM.integers(0, 65536, (70, 96, 3), dtype=numpy.uint16), chunks=b"")),
    )
    assert what_is_lost(eight, ".png") is None
    assert what_is_lost(eight, ".WEBP") is None
    assert "no pixel exactly" in (what_is_lost(eight, ".jpg") or "")
    assert what_is_lost(sixteen, ".png") is None
    assert "16 bits" in (what_is_lost(sixteen, ".webp") or "")
