"""What lies in an image's place: the image, a wreck, or somebody else's work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from PIL import Image
from records import record

from klein_cli.output.png import encode
from klein_cli.recipe import Recipe
from klein_cli.run.resume.existing import Existing, look
from klein_cli.run.resume.history import Item, file_hash, recipe_hash
from klein_cli.settings import Settings

RECIPE = Recipe(prompt="a", seed=7, width=64, height=48, steps=4, guidance=1.0, model="tiny")
PLANNED = Item(run=1, index=1, seed=7, file="1.png")


@pytest.fixture(params=[".png", ".jpg", ".webp"])
def picture(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An image file with its record, as a run writes it."""
    pixels = numpy.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=numpy.uint8)
    written = record(RECIPE, Settings(), provenance={})
    path = tmp_path / f"1{request.param}"
    path.write_bytes(encode(pixels, request.param, written, "a"))
    return path


def recorded(path: Path) -> Item:
    return replace(PLANNED, recipe=recipe_hash(RECIPE), sha256=file_hash(path))


def test_nothing(tmp_path: Path) -> None:
    assert look(tmp_path / "1.png", RECIPE, PLANNED) is Existing.NOTHING


def test_the_picture_as_it_was_recorded(picture: Path) -> None:
    assert look(picture, RECIPE, recorded(picture)) is Existing.MADE


def test_the_picture_of_a_run_that_died_before_it_was_recorded(picture: Path) -> None:
    assert look(picture, RECIPE, PLANNED) is Existing.UNRECORDED


def test_a_recorded_picture_of_another_recipe_does_not_match(picture: Path) -> None:
    other = replace(RECIPE, steps=2)
    assert look(picture, other, recorded(picture)) is Existing.FOREIGN
    item = replace(recorded(picture), recipe=recipe_hash(other))
    assert look(picture, RECIPE, item) is Existing.UNRECORDED


@pytest.mark.parametrize("kept", [0, 1, 40, 0.5, 0.9, 0.999, -12, -1])
def test_a_torn_file_is_a_wreck_wherever_it_was_torn(picture: Path, kept: float) -> None:
    whole = picture.read_bytes()
    cut = int(len(whole) * kept) if isinstance(kept, float) else kept
    item = recorded(picture)
    picture.write_bytes(whole[:cut])
    assert look(picture, RECIPE, item) is Existing.TORN
    assert look(picture, RECIPE, PLANNED) is Existing.TORN


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, Existing.UNRECORDED),
        ({"dtype": "auto", "metadata": "yes"}, Existing.UNRECORDED),
        ({"dtype": "bfloat16"}, Existing.FOREIGN),
        ({"weights": "abcdef0"}, Existing.UNRECORDED),
    ],
)
def test_a_picture_that_an_earlier_run_computed_otherwise(
    picture: Path, settings: dict[str, str], found: Existing
) -> None:
    """`-y --dtype bfloat16` that was killed: what it had not replaced by then is not its own."""
    assert look(picture, RECIPE, PLANNED, settings) is found


def test_somebody_elses_picture(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "1.png")
    assert look(tmp_path / "1.png", RECIPE, PLANNED) is Existing.FOREIGN


@pytest.mark.parametrize("data", [b"my notes", b"GIF89a", b"BM...", b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_what_is_no_picture_of_ours_is_somebody_elses(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "1.png").write_bytes(data)
    assert look(tmp_path / "1.png", RECIPE, PLANNED) is Existing.FOREIGN


@pytest.mark.parametrize("data", [b"", b"\0" * 5000, b"\x89PN", b"\xff\xd8\xff\xe0", b"RIFF"])
def test_what_a_crash_leaves_is_a_wreck(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "1.png").write_bytes(data)
    assert look(tmp_path / "1.png", RECIPE, PLANNED) is Existing.TORN


def test_a_folder_in_its_place_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "1.png").mkdir()
    assert look(tmp_path / "1.png", RECIPE, PLANNED) is Existing.FOREIGN
