"""`klein info`: the recipe of an image, for a person and for a program."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from PIL import Image, PngImagePlugin
from records import record

from klein_cli.cli.app import main
from klein_cli.output.metadata import parameters
from klein_cli.output.png import encode
from klein_cli.recipe import Adapter, Mask, Recipe, Reference
from klein_cli.settings import Settings

RECIPE = Recipe(
    prompt="a cat\x1b[2J", seed=7, width=64, height=32, steps=4, guidance=1.0, model="tiny"
)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    settings = Settings(device="cpu", dtype="float32", attention="sdpa")
    written = record(
        RECIPE,
        settings,
        repo="owner/name",
        revision="ab" * 20,
        weights="cd" * 16,
        provenance={"torch": "2.13"},
        step_down="made alone\nin the end",
    ) | {"sigmas": [1.0, 0.95, 0.87, 0.7, 0.0]}
    path = tmp_path / "a.png"
    pixels = numpy.zeros((32, 64, 3), dtype=numpy.uint8)
    path.write_bytes(encode(pixels, ".png", written, parameters(RECIPE)))
    return path


def test_a_person_reads_it_and_no_escape_reaches_the_terminal(
    picture: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(picture)]) == 0
    shown = capfd.readouterr().out
    assert "prompt  a cat\\x1b[2J" in shown
    assert "\x1b" not in shown
    for words in (
        *("seed  7", "size  64x32", "torch 2.13", "engine native", "weights  " + "cd" * 16),
        *("sigmas  1, 0.95, 0.87, 0.7, 0\n", "model  tiny (owner/name " + "ab" * 20 + ")"),
        "step down  made alone\\nin the end",
    ):
        assert words in shown
    assert "not known" not in shown


def test_a_program_reads_it(picture: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json", str(picture), str(picture)]) == 0
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert first == second
    assert first["file"] == str(picture)
    assert first["recipe"]["prompt"] == RECIPE.prompt
    assert first["sigmas"] == [1.0, 0.95, 0.87, 0.7, 0.0]
    assert (first["format"], first["weights"]) == (2, "cd" * 16)


def test_no_escape_of_a_bad_picture_reaches_the_terminal_beside_others(
    picture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    evil = tmp_path / "evil.png"
    text = PngImagePlugin.PngInfo()
    with Image.open(picture) as image:
        table = json.loads(image.text["klein"])  # type: ignore[attr-defined]
        table["provenance"] = {"\x1b]0;title\x07": 1}
        text.add_text("klein", json.dumps(table))
        image.save(evil, pnginfo=text)
    assert main(["info", str(evil), str(picture)]) == 1
    err = capfd.readouterr().err
    assert "is not valid" in err
    assert "\x1b" not in err


def test_one_bad_picture_does_not_hide_the_others(
    picture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain.png"
    Image.new("RGB", (16, 16)).save(plain)
    assert main(["info", str(plain), str(picture)]) == 1
    out, err = capfd.readouterr()
    assert "seed  7" in out
    assert "plain.png holds no recipe" in err
    assert "hint:" in err
    assert main(["info", str(plain)]) == 2


def test_what_an_edit_was_given_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its images by name, size and digest; its mask; its adapters; none as a table in braces."""
    recipe = replace(
        RECIPE,
        references=(
            Reference(sha256="ab" * 32, name="photo\x1b[2J.jpg", width=1248, height=832),
            Reference(sha256="cd" * 32, name="style.png", width=64, height=64),
        ),
        mask=Mask(
            sha256="ef" * 32, name="mask.png", expand=(0, 0, 256, 0), box=(10, 20, 522, 532), blur=8
        ),
        adapters=(Adapter(sha256="12" * 32, name="ink.safetensors", weight=0.8),),
    )
    settings = Settings(device="cpu", dtype="float32", attention="sdpa")
    written = record(recipe, settings, provenance={})
    path = tmp_path / "a.png"
    path.write_bytes(encode(numpy.zeros((32, 64, 3), numpy.uint8), ".png", written, ""))
    assert main(["info", str(path)]) == 0
    shown = capfd.readouterr().out
    for line in (
        "     image  photo\\x1b[2J.jpg, seen at 1248x832 (sha256 abababababab)",
        "     image  style.png, seen at 64x64 (sha256 cdcdcdcdcdcd)",
        "      mask  mask.png (sha256 efefefefefef), "
        "expanded by 0 left, 0 top, 256 right, 0 bottom, "
        "painted in 512x512 at 10,20, blur 8, all else kept",
        "   adapter  ink.safetensors, weight 0.8 (sha256 121212121212)",
    ):
        assert line in shown.splitlines()
    assert "\x1b" not in shown
