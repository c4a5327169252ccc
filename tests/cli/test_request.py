"""Options -> settings, rows and defaults."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from klein_cli.cli.request import (
    Request,
    batch_size_of,
    defaults_of,
    prompts_of,
    settings_of,
    without_effect,
)
from klein_cli.errors import UsageError
from klein_cli.presets import presets
from klein_cli.prompts.files import BadRow
from klein_cli.prompts.rows import MAX_PICTURES, Row
from klein_cli.settings import Settings

TINY = presets()["tiny"]
BASE = presets()["klein-base-4b"]


def request(**given: Any) -> Request:
    return Request(**({"model": "tiny"} | given))


def test_settings_are_taken_as_given() -> None:
    given = request(
        device="cuda:1", dtype="float16", engine="diffusers", attention="eager", rng="cuda"
    )
    assert settings_of(given) == Settings(
        device="cuda:1", dtype="float16", engine="diffusers", attention="eager", rng="cuda"
    )
    assert settings_of(request()) == Settings()


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"device": "gpu"}, "use auto, cuda, cpu, cuda:N"),
        ({"device": "cuda:"}, "use auto, cuda, cpu, cuda:N"),
        ({"device": "cuda:x"}, "use auto, cuda, cpu, cuda:N"),
        ({"device": "cuda:N"}, "use auto, cuda, cpu, cuda:N"),
        ({"device": "cuda:01"}, "use auto, cuda, cpu, cuda:N"),
        ({"device": "cuda:256"}, "use auto, cuda, cpu, cuda:N"),
        ({"dtype": "bfloat"}, "use auto, bfloat16, float16, float32"),
        ({"engine": "comfy"}, "use native, diffusers"),
        ({"attention": "flash"}, "use auto, sdpa, flash-attn, eager"),
        ({"rng": "gpu"}, "use cpu, cuda"),
    ],
)
def test_a_wrong_choice_names_the_right_ones(given: dict[str, str], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings_of(request(**given))
    assert f"--{next(iter(given))} {next(iter(given.values()))}" in caught.value.message
    assert hint in caught.value.hint


def test_batch_size() -> None:
    assert batch_size_of(request()) is None
    assert batch_size_of(request(batch_size="auto")) is None
    assert batch_size_of(request(batch_size="16")) == 16


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "", "²"])
def test_a_wrong_batch_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--batch-size"):
        batch_size_of(request(batch_size=text))


def read(asked: Request, stdin: bytes) -> tuple[str, list[Row | BadRow]]:
    source, rows = prompts_of(asked, io.BytesIO(stdin))
    return source, list(rows)


@pytest.mark.parametrize("given", [{"prompt": " a cat "}, {"prompt_option": " a cat "}])
def test_a_typed_prompt_is_taken_as_it_stands(given: dict[str, str]) -> None:
    assert read(request(**given), b"") == ("", [Row(prompt=" a cat ")])


@pytest.mark.parametrize("given", [{"prompt": "-"}, {"prompt_option": "-"}])
def test_dash_reads_one_prompt_of_many_lines(given: dict[str, str]) -> None:
    wanted = "", [Row(prompt="a cat\n# and a dog")]
    assert read(request(**given), b"a cat\n# and a dog\n") == wanted


def test_a_prompts_file_gives_its_rows_and_its_name(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a cat\na dog\n")
    source, rows = read(request(prompts_file=str(path)), b"")
    assert source == str(path)
    assert rows == [Row(prompt="a cat", line=1), Row(prompt="a dog", line=2)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "there is no prompt"),
        ({"prompt": "a", "prompt_option": "b"}, "more than one way"),
        ({"prompt": "a", "prompts_file": "p.txt"}, "more than one way"),
        ({"prompt": "-", "prompts_file": "-"}, "more than one way"),
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "-"}, "standard input holds no prompt"),
        ({"prompt": b"\xff".decode("utf-8", "surrogateescape")}, "not valid Unicode"),
    ],
)
def test_prompts_that_cannot_be_used(given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prompts_of(request(**given), io.BytesIO(b"\n"))


def test_defaults_come_from_the_preset() -> None:
    silent = defaults_of(request(), TINY)
    assert (silent.width, silent.height, silent.steps, silent.guidance) == (256, 256, 4, 1.0)
    assert (silent.n, silent.model) == (1, "tiny")


def test_options_override_the_preset() -> None:
    given = request(size="128x256", steps=2, num_images=3)
    defaults = defaults_of(given, TINY)
    assert (defaults.width, defaults.height, defaults.steps, defaults.n) == (128, 256, 2, 3)


def test_a_sweep_goes_with_no_other_seeds() -> None:
    assert defaults_of(request(seeds="1-3"), TINY).seeds == (range(1, 4),)
    for given in ({"seed": 1}, {"num_images": 2}):
        with pytest.raises(UsageError, match="--seeds"):
            defaults_of(request(seeds="1-3", **given), TINY)


def test_guidance_goes_to_base_models_only() -> None:
    given = request(guidance=7.0, negative_prompt="rain")
    base, tiny = defaults_of(given, BASE), defaults_of(given, TINY)
    assert (base.guidance, base.negative_prompt) == (7.0, "rain")
    assert (tiny.guidance, tiny.negative_prompt) == (1.0, None)
    assert list(without_effect(given, TINY)) == ["--guidance", "--negative-prompt"]
    assert list(without_effect(given, BASE)) == []
    assert defaults_of(request(guidance=0.0), BASE).guidance == 0.0


def test_the_other_names_of_guidance_mean_the_same() -> None:
    assert defaults_of(request(guidance_scale=7.0), BASE).guidance == 7.0
    assert list(without_effect(request(guidance_scale=7.0), TINY)) == ["--guidance"]


@pytest.mark.parametrize("count", [0, -1, MAX_PICTURES + 1])
def test_num_images_has_a_range(count: int) -> None:
    with pytest.raises(UsageError, match="--num-images"):
        defaults_of(request(num_images=count), TINY)


def test_the_model_is_recorded_by_name_and_not_by_where_it_lies() -> None:
    given = request(model="/home/someone/models/snap")
    assert defaults_of(given, TINY).model == "tiny"
