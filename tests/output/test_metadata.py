"""What an image's file says: enough to make it again, the same every time."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import record

from klein_cli import __version__
from klein_cli.output.metadata import parameters, to_json
from klein_cli.output.png import encode
from klein_cli.recipe import Adapter, Recipe
from klein_cli.settings import Settings

RECIPE = Recipe(
    prompt='a "café"\nat night',
    seed=2**62,
    width=256,
    height=128,
    steps=4,
    guidance=1.0,
    model="tiny",
)
SETTINGS = Settings(device="cpu", dtype="float32", attention="sdpa")


def test_the_record_gives_back_recipe_and_settings_exactly() -> None:
    written = record(
        RECIPE,
        SETTINGS,
        repo="owner/name",
        revision="abc",
        weights="0f",
        provenance={"torch": "2.13"},
    )
    back = json.loads(to_json(written))
    assert Recipe(**back["recipe"]) == RECIPE
    assert Settings(**back["settings"]) == SETTINGS
    model = {"name": "tiny", "repo": "owner/name", "revision": "abc", "weights": "0f"}
    assert back["model"] == model
    assert len(back["sigmas"]) == RECIPE.steps + 1
    assert (back["sigmas"][0], back["sigmas"][-1]) == (1.0, 0.0)
    assert back["provenance"] == {"torch": "2.13"}
    assert (back["format"], back["klein"]) == (2, __version__)


def test_the_record_is_one_line_of_ascii() -> None:
    line = to_json(record(RECIPE, SETTINGS, provenance={}))
    assert line.isascii()
    assert "\n" not in line


def test_a_step_down_is_recorded_only_when_there_was_one() -> None:
    plain = record(RECIPE, SETTINGS, provenance={})
    assert "step_down" not in plain
    stepped = record(RECIPE, SETTINGS, provenance={}, step_down="made alone")
    assert stepped["step_down"] == "made alone"


def test_parameters_read_as_other_tools_expect() -> None:
    assert parameters(RECIPE) == (
        'a "café"\nat night\n'
        "Steps: 4, Sampler: Euler, CFG scale: 1, Seed: 4611686018427387904, Size: 256x128, "
        f"Model: tiny, Version: klein {__version__}"
    )


def test_parameters_name_the_adapters() -> None:
    """As others list them: each by the beginning of its file's digest, the name without its end."""
    adapters = (
        Adapter(sha256="ab" * 32, name="style.safetensors", weight=0.5),
        Adapter(sha256="cd" * 32, name="a, b.safetensors", weight=-1.0),
    )
    line = parameters(replace(RECIPE, adapters=adapters)).splitlines()[-1]
    assert 'Lora hashes: "style: ababababab, a, b: cdcdcdcdcd", ' in line
    assert 'Lora weights: "style: 0.5, a, b: -1", ' in line
    assert "Lora" not in parameters(RECIPE)


def test_parameters_name_the_negative_prompt() -> None:
    recipe = Recipe(**(asdict(RECIPE) | {"negative_prompt": "rain", "guidance": 4.5}))
    assert parameters(recipe).splitlines()[2] == "Negative prompt: rain"
    assert "CFG scale: 4.5," in parameters(recipe)


def read_by_others(text: str) -> tuple[str, str, dict[str, str]]:
    """(prompt, negative prompt, values), by the rules that readers of `parameters` share.

    The last line holds the values; a line that begins with "Negative prompt:" begins the negative
    prompt; a value in double quotes is a JSON string.
    """
    *lines, last = text.strip().split("\n")
    parts: list[list[str]] = [[], []]
    negative = 0
    for line in lines:
        line = line.strip()
        if line.startswith("Negative prompt:"):
            negative, line = 1, line.removeprefix("Negative prompt:").strip()
        parts[negative].append(line)
    return "\n".join(parts[0]).strip(), "\n".join(parts[1]).strip(), values_in(last)


def values_in(line: str) -> dict[str, str]:
    """ "Name: value, Name: value" -> a table."""
    values: dict[str, str] = {}
    while line:
        name, _, line = line.partition(": ")
        if line.startswith('"'):
            values[name], end = json.JSONDecoder().raw_decode(line)
            line = line[end:].removeprefix(", ")
        else:
            values[name], _, line = line.partition(", ")
    return values


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ('a cat, a dog: "both"', 'a cat, a dog: "both"'),
        ("one\n\n  two\nthree", "one\n\ntwo\nthree"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("a sign\nNegative prompt: keep out", "a sign\nNegative prompt : keep out"),
        (" negative prompt: x", "negative prompt : x"),
        ("stairs\nSteps: 12, Seed: 3", "stairs\nSteps : 12, Seed: 3"),
        ("a\u2028Steps: 12, Seed: 3", "a\u2028Steps : 12, Seed: 3"),
        ("a stair\nFirst Steps: 12", "a stair\nFirst Steps: 12"),
        ("nul\0 and escape\x1b[2J", "nul and escape[2J"),
        ("猫\tand 👩‍🎨", "猫\tand 👩‍🎨"),
    ],
)
def test_other_tools_find_every_part_in_its_place(prompt: str, shown: str) -> None:
    """An unescaped line of a prompt was taken for the negative prompt, or for the settings."""
    for negative in (None, "rain\nSteps: 9"):
        recipe = replace(RECIPE, prompt=prompt, negative_prompt=negative, guidance=4.5)
        found, away, values = read_by_others(parameters(recipe))
        assert found == shown
        assert away == ("rain\nSteps : 9" if negative else "")
        assert (values["Steps"], values["Seed"]) == ("4", str(2**62))


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(min_size=1, max_size=30),
    st.floats(0, 100),
)
def test_no_text_escapes_its_place(prompt: str, negative: str, model: str, guidance: float) -> None:
    recipe = replace(
        RECIPE, prompt=prompt, negative_prompt=negative, model=model, guidance=guidance
    )
    found, away, values = read_by_others(parameters(recipe))
    assert not away or negative.strip()
    assert not found or prompt.strip()
    assert float(values["CFG scale"]) == guidance
    assert values["Model"] == model.encode("utf-8", "replace").decode()
    assert list(values) == ["Steps", "Sampler", "CFG scale", "Seed", "Size", "Model", "Version"]


def test_a_number_that_json_does_not_know_is_a_bug() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"sigmas": [float("nan")]})


@pytest.mark.process
@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp"])
def test_exiftool_reads_the_same(tmp_path: Path, extension: str) -> None:
    recipe = replace(RECIPE, prompt='a "café", red: 猫\nat night\u2028', negative_prompt="rain")
    written = record(recipe, SETTINGS, provenance={"torch": "2.13"})
    pixels = numpy.zeros((16, 16, 3), dtype=numpy.uint8)

    def exiftool(data: bytes) -> dict[str, str]:
        path = tmp_path / f"a{extension}"
        path.write_bytes(data)
        command = ["exiftool", "-json", str(path)]
        said = subprocess.run(command, capture_output=True, check=True).stdout
        (tags,) = json.loads(said)
        return tags  # type: ignore[no-any-return]

    tags = exiftool(encode(pixels, extension, written, parameters(recipe)))
    if extension == ".png":
        assert json.loads(tags["Klein"]) == written
        assert tags["Parameters"] == parameters(recipe)
    else:
        assert tags["UserComment"] == parameters(recipe)
    bare = exiftool(encode(pixels, extension, None, parameters(recipe)))
    assert not {"Klein", "Parameters", "UserComment", "ExifByteOrder"} & bare.keys()
