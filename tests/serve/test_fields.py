"""Each field of OpenAI's Images API: used, refused by name, or ignored with a word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from klein_cli.presets import presets
from klein_cli.recipe import Adapter
from klein_cli.serve.errors import ApiError
from klein_cli.serve.fields import Asked, Served, parse

SERVED = Served(preset=presets()["klein-base-4b"], names=("klein-base-4b", "nick"))
DISTILLED = Served(preset=presets()["klein-4b"], names=("klein-4b",))


def asked(served: Served = SERVED, **body: Any) -> Asked:
    return parse({"prompt": "a red fox", **body}, served)


def refused(**body: Any) -> ApiError:
    with pytest.raises(ApiError) as error:
        parse({"prompt": "a red fox", **body}, SERVED)
    return error.value


def test_what_is_left_out_is_the_models_own() -> None:
    found = asked(seed=7)
    (recipe,) = found.recipes
    preset = SERVED.preset
    assert (recipe.width, recipe.height) == (preset.width, preset.height)
    assert (recipe.steps, recipe.guidance, recipe.seed) == (preset.steps, preset.guidance, 7)
    assert (found.extension, found.stream, found.warnings) == (".png", False, [])


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"size": "768x512"}, "width", 768),
        ({"size": "768x512"}, "height", 512),
        ({"width": 256}, "width", 256),
        ({"height": "256"}, "height", 256),
        ({"steps": 7}, "steps", 7),
        ({"num_inference_steps": 7}, "steps", 7),
        ({"guidance": 2.5}, "guidance", 2.5),
        ({"guidance_scale": 2}, "guidance", 2.0),
        ({"cfg_scale": "3"}, "guidance", 3.0),
        ({"negative_prompt": "blue"}, "negative_prompt", "blue"),
        ({"seed": "9"}, "seed", 9),
    ],
)
def test_what_is_given_is_drawn(body: dict[str, Any], field: str, value: object) -> None:
    assert getattr(asked(**body).recipes[0], field) == value


def test_n_images_have_seeds_that_follow_and_a_seed_of_minus_one_is_a_random_one() -> None:
    assert [recipe.seed for recipe in asked(n=3, seed=5).recipes] == [5, 6, 7]
    assert asked(seed=-1).recipes[0].seed != asked(seed=-1).recipes[0].seed


@pytest.mark.parametrize("name", ["gpt-image-1", "gpt-image-2.6-flare", "dall-e-3", "nick", None])
def test_names_that_clients_cannot_change_mean_the_model_that_is_there(name: str | None) -> None:
    assert asked(model=name).recipes[0].model == "klein-base-4b"


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"model": "stable-diffusion"}, "model", 404),
        ({"model": 3}, "model", 400),
        ({"prompt": ""}, "prompt", 400),
        ({"prompt": None}, "prompt", 400),
        ({"prompt": ["a"]}, "prompt", 400),
        ({"prompt": "a" * 32_001}, "prompt", 400),
        ({"prompt": "\ud800"}, "prompt", 400),
        ({"n": 0}, "n", 400),
        ({"n": 11}, "n", 400),
        ({"n": True}, "n", 400),
        ({"n": 1.5}, "n", 400),
        ({"n": "1e999"}, "n", 400),
        ({"size": "big"}, "size", 400),
        ({"size": "100x100"}, "size", 400),
        ({"size": "99999x16"}, "size", 400),
        ({"width": 100}, "size", 400),
        ({"steps": 0}, "steps", 400),
        ({"steps": 2, "num_inference_steps": 2}, "num_inference_steps", 400),
        ({"guidance": "nan"}, "guidance", 400),
        ({"seed": 2**63}, "seed", 400),
        ({"response_format": "file"}, "response_format", 400),
        ({"output_format": "gif"}, "output_format", 400),
        ({"output_format": "svg"}, "output_format", 400),
        ({"output_compression": 101}, "output_compression", 400),
        ({"background": "transparent"}, "background", 400),
        ({"partial_images": 4}, "partial_images", 400),
        ({"stream": "yes"}, "stream", 400),
        ({"frame_count": 2}, "frame_count", 400),
        ({"frame_duration_ms": 20}, "frame_duration_ms", 400),
        ({"svg": {}}, "svg", 400),
        ({"markup": "x"}, "markup", 400),
        ({"timeout": -1}, "timeout", 400),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(
    body: dict[str, Any], param: str, status: int
) -> None:
    error = refused(**body)
    assert (error.param, error.status) == (param, status)
    assert error.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        {"quality": "xhigh"},
        {"moderation": "low"},
        {"user": "u"},
        {"safety_identifier": "u"},
        {"style": "vivid"},
        {"input_fidelity": "high"},
        {"complexity": 3},
        {"sampler": "euler"},
        {"output_compression": 50},
        {"partial_images": 2},
        {"progress": True},
    ],
)
def test_what_has_no_effect_is_said(body: dict[str, Any]) -> None:
    (warning,) = asked(**body).warnings
    assert next(iter(body)) in warning


def test_a_distilled_model_says_that_guidance_has_no_effect() -> None:
    found = asked(DISTILLED, guidance=4, negative_prompt="blue")
    assert len(found.warnings) == 2
    assert found.recipes[0].guidance == 1.0


ADAPTER = Adapter(sha256="0a" * 32, name="a.safetensors", weight=1.0)


def test_adapters_are_those_that_were_named_at_the_start() -> None:
    served = Served(preset=presets()["tiny"], names=("tiny",), adapters={"ink": ADAPTER})
    found = asked(served, lora=["ink", "ink=0.5"]).recipes[0]
    assert found.adapters == (ADAPTER, replace(ADAPTER, weight=0.5))
    assert asked(served, lora="ink").recipes[0].adapters == (ADAPTER,)
    for wrong in (["other"], ["/etc/passwd"], ["ink=nan"], ["ink=1e9"], [3], {"ink": 1}):
        with pytest.raises(ApiError) as error:
            asked(served, lora=wrong)
        assert (error.value.param, error.value.status) == ("lora", 400)


def test_auto_is_no_word_worth_a_warning() -> None:
    words = {"quality": "auto", "size": "auto", "background": "auto", "moderation": "auto"}
    assert asked(**words).warnings == []


def test_a_warning_does_not_repeat_what_was_written_at_length() -> None:
    assert all(len(warning) < 200 for warning in asked(**{"x" * 5000: 1}).warnings)
