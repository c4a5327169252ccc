"""A prompt that is too long for the model: told of, or refused where the request is strict."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engines import Running

from klein_cli.presets import presets
from klein_cli.serve.errors import ApiError
from klein_cli.serve.fields import Served, parse
from klein_cli.serve.lengths import PromptLengths
from klein_cli.text.qwen3 import qwen3_tokenizer
from klein_cli.text.tokenizer import PromptTokenizer

LONG = "a red fox " * 300
ROUTES = ["/v1/images/generations", "/sdapi/v1/txt2img"]
BASE = Served(preset=presets()["klein-base-4b"], names=())


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def post(client: httpx.Client, route: str, **body: Any) -> httpx.Response:
    return client.post(route, json={"width": 128, "height": 128, "steps": 1, **body})


def warnings_of(body: dict[str, Any]) -> list[str]:
    found = json.loads(body["info"])["warnings"] if "info" in body else body["warnings"]
    return [str(each) for each in found]


@pytest.mark.parametrize("route", ROUTES)
def test_a_prompt_that_is_cut_is_drawn_with_a_warning(client: httpx.Client, route: str) -> None:
    """Its end was cut off without a word."""
    answer = post(client, route, prompt=LONG)
    assert answer.status_code == 200
    (warning,) = warnings_of(answer.json())
    assert "tokens long and" in warning
    assert "the model does not see its end" in warning


@pytest.mark.parametrize("route", ROUTES)
def test_a_strict_request_is_refused_and_nothing_is_drawn(
    client: httpx.Client, server: Running, route: str
) -> None:
    """`strict` was taken and did nothing."""
    before = len(server.script.drawn)
    answer = post(client, route, prompt=LONG, strict=True)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert "tokens long and" in error["message"]
    assert len(server.script.drawn) == before


@pytest.mark.parametrize("route", ROUTES)
def test_a_strict_request_that_fits_is_drawn(client: httpx.Client, route: str) -> None:
    answer = post(client, route, prompt="a red fox " * 45, strict=True)
    assert answer.status_code == 200
    assert warnings_of(answer.json()) == []


def test_a_stream_says_it_with_the_image_and_refuses_before_it_begins(
    client: httpx.Client,
) -> None:
    asked = {"prompt": LONG, "stream": True}
    answer = post(client, ROUTES[0], **asked)
    (data,) = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert "tokens long" in json.loads(data)["warnings"][0]
    assert post(client, ROUTES[0], **asked, strict=True).status_code == 400


def test_a_negative_prompt_is_measured_too() -> None:
    lengths = PromptLengths(lambda: PromptTokenizer(qwen3_tokenizer()))
    asked = parse({"prompt": "a red fox", "negative_prompt": LONG}, BASE)
    asyncio.run(lengths.check(asked))
    assert asked.warnings[0].startswith("negative_prompt: ")
    strict = parse({"prompt": "a red fox", "negative_prompt": LONG, "strict": True}, BASE)
    with pytest.raises(ApiError) as error:
        asyncio.run(lengths.check(strict))
    assert error.value.param == "negative_prompt"


def test_a_short_prompt_does_not_wait_for_the_tokenizer() -> None:
    """A second, and a hundred megabytes, that most servers never need."""
    lengths = PromptLengths(lambda: pytest.fail("it was read"))
    asked = parse({"prompt": "a red fox", "strict": True}, BASE)
    asyncio.run(lengths.check(asked))
    assert asked.warnings == []
