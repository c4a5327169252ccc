"""What a picture's file says: enough to make it again, the same every time."""

from __future__ import annotations

import json
from dataclasses import asdict

from klein_cli import __version__
from klein_cli.output.metadata import parameters, record, to_json
from klein_cli.recipe import Recipe, Settings

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
    written = record(RECIPE, SETTINGS, revision="abc", provenance={"torch": "2.13"})
    back = json.loads(to_json(written))
    assert Recipe(**back["recipe"]) == RECIPE
    assert Settings(**back["settings"]) == SETTINGS
    assert back["model"] == {"name": "tiny", "revision": "abc"}
    assert back["provenance"] == {"torch": "2.13"}
    assert (back["format"], back["klein"]) == (1, __version__)


def test_the_record_is_one_line_of_ascii() -> None:
    line = to_json(record(RECIPE, SETTINGS, revision=None, provenance={}))
    assert line.isascii()
    assert "\n" not in line


def test_a_step_down_is_recorded_only_when_there_was_one() -> None:
    plain = record(RECIPE, SETTINGS, revision=None, provenance={})
    assert "step_down" not in plain
    stepped = record(RECIPE, SETTINGS, revision=None, provenance={}, step_down="made alone")
    assert stepped["step_down"] == "made alone"


def test_parameters_read_as_other_tools_expect() -> None:
    assert parameters(RECIPE) == (
        'a "café"\nat night\n'
        "Steps: 4, Sampler: Euler, CFG scale: 1, Seed: 4611686018427387904, Size: 256x128, "
        f"Model: tiny, Version: klein {__version__}"
    )


def test_parameters_name_the_negative_prompt() -> None:
    recipe = Recipe(**(asdict(RECIPE) | {"negative_prompt": "rain", "guidance": 4.5}))
    assert parameters(recipe).splitlines()[2] == "Negative prompt: rain"
    assert "CFG scale: 4.5," in parameters(recipe)
