"""Options -> settings, rows and defaults."""

from __future__ import annotations

import io
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from klein_cli.cli.options import ImageOptions, MachineOptions
from klein_cli.errors import UsageError
from klein_cli.presets import presets
from klein_cli.prompts.columns import BadRow
from klein_cli.prompts.rows import MAX_IMAGES, Defaults, Row, ignored, recipe_of
from klein_cli.prompts.source import prompt_source
from klein_cli.settings import Settings

TINY = presets()["tiny"]
BASE = presets()["klein-base-4b"]


def defaults(preset: Any = TINY, **given: Any) -> Defaults:
    negative = given.pop("negative_prompt", None)
    return ImageOptions(**given).defaults(preset, negative_prompt=negative)


def recipe(preset: Any = TINY, **given: Any) -> Any:
    return recipe_of(Row(prompt="a"), defaults(preset, **given), 1)


def test_settings_are_taken_as_given() -> None:
    given = {
        field.name: "cuda:1" if field.name == "device" else "auto" for field in fields(Settings)
    }
    given |= {"dtype": "float16", "engine": "diffusers", "rng": "cuda", "quantize": "fp8"}
    assert MachineOptions(**given).settings() == Settings(**given)
    assert MachineOptions().settings() == Settings()


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"device": "gpu"}, "use auto, cuda, cuda:N, cpu"),
        ({"device": "cuda:"}, "use auto, cuda, cuda:N, cpu"),
        ({"device": "cuda:x"}, "use auto, cuda, cuda:N, cpu"),
        ({"device": "cuda:N"}, "use auto, cuda, cuda:N, cpu"),
        ({"device": "cuda:01"}, "use auto, cuda, cuda:N, cpu"),
        ({"device": "cuda:256"}, "use auto, cuda, cuda:N, cpu"),
        ({"dtype": "bfloat"}, "use auto, bfloat16, float16, float32"),
        ({"engine": "comfy"}, "use native, diffusers"),
        ({"attention": "flash"}, "use auto, sdpa, flash-attn, eager"),
        ({"rng": "gpu"}, "use cpu, cuda"),
    ],
)
def test_a_wrong_choice_names_the_right_ones(given: dict[str, str], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        MachineOptions(**given).settings()
    assert f"--{next(iter(given))} {next(iter(given.values()))}" in caught.value.message
    assert hint in caught.value.hint


def test_batch_size() -> None:
    assert MachineOptions().images_per_batch() is None
    assert MachineOptions(batch_size="auto").images_per_batch() is None
    assert MachineOptions(batch_size="16").images_per_batch() == 16


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "", "²"])
def test_a_wrong_batch_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--batch-size"):
        MachineOptions(batch_size=text).images_per_batch()


def read(stdin: bytes = b"", **given: str) -> tuple[str, list[Row | BadRow]]:
    ways: dict[str, str | None] = dict.fromkeys(("typed", "option", "file"))
    source = prompt_source(**(ways | given), stdin=io.BytesIO(stdin))
    return source.file, list(source.rows)


@pytest.mark.parametrize("given", [{"typed": " a cat "}, {"option": " a cat "}])
def test_a_typed_prompt_is_taken_as_it_stands(given: dict[str, str]) -> None:
    assert read(**given) == ("", [Row(prompt=" a cat ")])


@pytest.mark.parametrize("given", [{"typed": "-"}, {"option": "-"}])
def test_dash_reads_one_prompt_of_many_lines(given: dict[str, str]) -> None:
    wanted = "", [Row(prompt="a cat\n# and a dog")]
    assert read(b"a cat\n# and a dog\n", **given) == wanted


def test_a_prompts_file_gives_its_rows_and_its_name(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a cat\na dog\n")
    source, rows = read(file=str(path))
    assert source == str(path)
    assert rows == [Row(prompt="a cat", line=1), Row(prompt="a dog", line=2)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "there is no prompt"),
        ({"typed": "a", "option": "b"}, "more than one way"),
        ({"typed": "a", "file": "p.txt"}, "more than one way"),
        ({"typed": "-", "file": "-"}, "more than one way"),
        ({"typed": "  "}, "the prompt is empty"),
        ({"typed": "-"}, "standard input holds no prompt"),
        ({"typed": b"\xff".decode("utf-8", "surrogateescape")}, "not valid Unicode"),
    ],
)
def test_prompts_that_cannot_be_used(given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(b"\n", **given)


def test_defaults_come_from_the_preset() -> None:
    silent = recipe()
    assert (silent.width, silent.height, silent.steps, silent.guidance) == (256, 256, 4, 1.0)
    assert (defaults().n, silent.model) == (1, "tiny")


def test_options_override_the_preset() -> None:
    made = recipe(size="128x256", steps=2)
    assert (made.width, made.height, made.steps) == (128, 256, 2)
    assert defaults(num_images=3).n == 3


def test_a_sweep_goes_with_no_other_seeds() -> None:
    assert defaults(seeds="1-3").seeds == (range(1, 4),)
    for given in ({"seed": 1}, {"num_images": 2}):
        with pytest.raises(UsageError, match="--seeds"):
            defaults(seeds="1-3", **given)


def test_guidance_goes_to_base_models_only() -> None:
    given = {"guidance": 7.0, "negative_prompt": "rain"}
    base, tiny = recipe(BASE, **given), recipe(TINY, **given)
    assert (base.guidance, base.negative_prompt) == (7.0, "rain")
    assert (tiny.guidance, tiny.negative_prompt) == (1.0, None)
    assert ignored(defaults(TINY, **given), TINY) == ("guidance", "negative_prompt")
    assert ignored(defaults(BASE, **given), BASE) == ()
    assert recipe(BASE, guidance=0.0).guidance == 0.0


def test_the_other_names_of_guidance_mean_the_same() -> None:
    assert recipe(BASE, guidance_scale=7.0).guidance == 7.0
    assert ignored(defaults(TINY, guidance_scale=7.0), TINY) == ("guidance",)


@pytest.mark.parametrize("count", [0, -1, MAX_IMAGES + 1])
def test_num_images_has_a_range(count: int) -> None:
    with pytest.raises(UsageError, match="--num-images"):
        defaults(num_images=count)
