"""Reading a picture's recipe back: exactly what was written, and nothing a stranger slips in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image, PngImagePlugin

from klein_cli import __version__
from klein_cli.errors import UsageError
from klein_cli.output.metadata import parameters, record
from klein_cli.output.png import encode
from klein_cli.output.reading import MAX_RECORD_BYTES, read_record
from klein_cli.recipe import Recipe, Settings

RECIPE = Recipe(
    prompt='a "café"\nat night \x1b[31m',
    seed=2**62,
    width=64,
    height=32,
    steps=4,
    guidance=4.5,
    model="tiny",
    negative_prompt="rain",
)
SETTINGS = Settings(device="cpu", dtype="float32", attention="sdpa")
WRITTEN = record(RECIPE, SETTINGS, revision="abc", provenance={"torch": "2.13"}, step_down="alone")


def png(path: Path, text: str) -> Path:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("klein", text)
    Image.new("RGB", (16, 16)).save(path, pnginfo=chunks)
    return path


def changed(**entries: Any) -> str:
    return json.dumps({**WRITTEN, **entries})


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp"])
def test_every_format_gives_the_record_back(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    pixels = numpy.zeros((32, 64, 3), dtype=numpy.uint8)
    path.write_bytes(encode(pixels, extension, WRITTEN, parameters(RECIPE)))
    found = read_record(path)
    assert found.recipe == RECIPE
    assert found.settings == SETTINGS
    assert (found.klein, found.revision, found.step_down) == (__version__, "abc", "alone")
    assert found.provenance == {"torch": "2.13"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("not json", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[1]", "is not klein's"),
        ('{"format": "1"}', "is not klein's"),
        (changed(format=99), "newer klein"),
        ('{"format": 1}', "does not make sense"),
        (changed(recipe={**WRITTEN["recipe"], "width": 63}), "width 63"),
        (changed(recipe={**WRITTEN["recipe"], "seed": "1"}), "seed is '1'"),
        (changed(recipe={**WRITTEN["recipe"], "steps": True}), "steps is 'True'"),
        (changed(settings={**WRITTEN["settings"], "device": None}), "device is 'None'"),
        (changed(recipe="__import__('os')"), "does not make sense"),
        (changed(provenance=[1]), "does not make sense"),
    ],
    ids=range(12),
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        read_record(png(tmp_path / "a.png", text))
    assert caught.value.hint


def test_a_huge_record_is_refused(tmp_path: Path) -> None:
    text = changed(recipe={**WRITTEN["recipe"], "prompt": "x" * MAX_RECORD_BYTES})
    with pytest.raises(UsageError):
        read_record(png(tmp_path / "a.png", text))


def test_files_that_hold_no_recipe(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "plain.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "plain.jpg")
    (tmp_path / "words.png").write_text("words")
    cut = png(tmp_path / "cut.png", changed())
    cut.write_bytes(cut.read_bytes()[:30])
    for name, complaint in {
        "plain.png": "holds no recipe",
        "plain.jpg": "holds no recipe",
        "words.png": "is not a picture",
        "cut.png": "cut.png",
        "absent.png": "No such file",
    }.items():
        with pytest.raises(UsageError, match=complaint):
            read_record(tmp_path / name)
