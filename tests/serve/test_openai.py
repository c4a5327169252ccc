"""OpenAI's Images API as a client sees it: over real sockets, with engines that draw at once."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy
import pytest
from fake_engines import Running, Script, pixels_of, running
from PIL import Image

from klein_cli.output.reading import read_record
from klein_cli.presets import presets
from klein_cli.serve.fields import Served, parse
from klein_cli.serve.log import Log

FOX = {"prompt": "a red fox", "seed": 7, "size": "128x144"}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def draw(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/images/generations", json={**FOX, **body})


def decoded(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def test_an_image_comes_with_its_seed_and_recipe_outside_and_in(
    client: httpx.Client, tmp_path: Path
) -> None:
    answer = draw(client)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["size"], body["output_format"], body["model"]) == ("128x144", "png", "tiny")
    (entry,) = body["data"]
    assert entry["seed"] == 7
    file = tmp_path / "a.png"
    file.write_bytes(base64.b64decode(entry["b64_json"]))
    record = read_record(file)
    (recipe,) = parse(FOX, Served(preset=presets()["tiny"], names=())).recipes
    assert record.recipe == recipe
    assert entry["recipe"]["prompt"] == "a red fox"
    assert numpy.array_equal(numpy.asarray(decoded(entry["b64_json"])), pixels_of(recipe))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_output_compression_is_the_files_quality(client: httpx.Client, kind: str) -> None:
    """It was taken and did nothing."""
    sizes = []
    for given in ({"output_compression": 10}, {"output_compression": 95}, {}):
        body = draw(client, output_format=kind, **given).json()
        assert body["warnings"] == []
        sizes.append(len(body["data"][0]["b64_json"]))
    assert sizes[0] < sizes[1] / 2
    assert sizes[1] == sizes[2]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats(client: httpx.Client, kind: str) -> None:
    entry = draw(client, output_format=kind).json()["data"][0]
    assert decoded(entry["b64_json"]).format == kind.upper()


def test_several_images_come_in_the_order_of_their_seeds(client: httpx.Client) -> None:
    assert [entry["seed"] for entry in draw(client, n=3).json()["data"]] == [7, 8, 9]


def test_a_url_is_random_and_leads_to_the_image(client: httpx.Client) -> None:
    entry = draw(client, response_format="url").json()["data"][0]
    assert "b64_json" not in entry
    assert client.get(entry["url"]).headers["content-type"] == "image/png"
    assert client.get(entry["url"][:-5] + "0.png").status_code == 404
    assert client.get("/v1/images/files/../../etc/passwd").status_code == 404


def test_what_was_ignored_is_said(client: httpx.Client) -> None:
    (warning,) = draw(client, sampler="euler").json()["warnings"]
    assert "sampler" in warning


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"prompt": "a", "prompt": "b"}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"{}", "application/json", 400),
        # What a web page of any site may send without asking.
        (b'{"prompt": "a"}', "text/plain", 415),
        (b"prompt=a", "application/x-www-form-urlencoded", 415),
    ],
)
def test_nonsense_is_an_error_of_openais_shape(
    client: httpx.Client, content: bytes, kind: str, status: int
) -> None:
    answer = client.post("/v1/images/generations", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_unknown_routes_and_methods_too(client: httpx.Client) -> None:
    for answer in (client.get("/nope"), client.get("/v1/images/generations")):
        assert answer.status_code in (404, 405)
        assert "message" in answer.json()["error"]


def test_the_models_are_the_one_that_is_there(client: httpx.Client) -> None:
    body = client.get("/v1/models").json()
    assert [model["id"] for model in body["data"]] == ["tiny", "nick"]
    assert client.get("/v1/models/nick").json()["object"] == "model"
    assert client.get("/v1/models/other").status_code == 404


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if lines:
            found.append((lines.get("event", ""), json.loads(lines["data"])))
    return found


def test_a_stream_has_the_partial_images_that_were_asked_for_and_then_the_image(
    client: httpx.Client,
) -> None:
    found = events(draw(client, stream=True, partial_images=2).text)
    kinds = [kind for kind, _ in found]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [data["partial_image_index"] for _, data in found[:2]] == [0, 1]
    assert all(data["type"] == kind for kind, data in found)
    assert found[-1][1]["seed"] == 7


def test_a_stream_says_nothing_of_kleins_own_unless_it_is_asked(client: httpx.Client) -> None:
    """OpenAI's clients take every event for an image, and break on what is none."""
    plain = events(draw(client, stream=True).text)
    assert [kind for kind, _ in plain] == ["image_generation.completed"]
    told = [kind for kind, _ in events(draw(client, stream=True, progress=True).text)]
    assert told[0] == "klein.queued"
    assert told.count("klein.step") == presets()["tiny"].steps


def test_an_error_amid_a_stream_is_data_with_an_error(short_folder: Path) -> None:
    with running(short_folder, Script(deaths=5)) as server, server.client() as client:
        found = events(draw(client, stream=True).text)
    assert "died" in found[-1][1]["error"]["message"]


def test_an_image_that_cannot_be_is_not_asked_for_again_by_clients(short_folder: Path) -> None:
    """OpenAI's clients draw twice more what fails with 500 or above."""
    script = Script(no_room_for=128, fits_in_tiles=False)
    with running(short_folder, script) as server, server.client() as client:
        answer = draw(client)
    assert answer.status_code == 507
    assert answer.headers["x-should-retry"] == "false"


def test_a_full_line_is_429_with_an_honest_wait(short_folder: Path) -> None:
    script = Script(step_seconds=0.2)
    with running(short_folder, script, queue=1) as server, server.client() as client:
        with client.stream("POST", "/v1/images/generations", json={**FOX, "stream": True}):
            wait_until(lambda: bool(script.drawn))
            with client.stream("POST", "/v1/images/generations", json={**FOX, "stream": True}):
                wait_until(lambda: len(server.service.dispatcher.waiting) == 1)
                answer = draw(client)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert answer.headers["x-klein-place"] == "2"
        assert answer.json()["error"]["code"] == "queue_full"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_costs_no_image(short_folder: Path, stream: bool) -> None:
    script = Script(step_seconds=0.1)
    with running(short_folder, script) as server, server.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(
                "/v1/images/generations", json={**FOX, "stream": stream, "n": 3}, timeout=0.25
            )
        wait_until(lambda: not server.service.dispatcher.drawing)
        assert len(script.drawn) == 1, "images were begun for nobody"
        assert len(script.cancelled) == 1


def test_a_job_is_cancelled_by_its_id(short_folder: Path) -> None:
    script = Script(step_seconds=0.1)
    with running(short_folder, script) as server, server.client() as client:
        asked = {**FOX, "stream": True, "progress": True}
        headers = {"x-request-id": "mine"}
        with client.stream("POST", "/v1/images/generations", json=asked, headers=headers) as got:
            wait_until(lambda: bool(script.drawn))
            assert client.delete("/v1/jobs/other").status_code == 404
            assert client.delete("/v1/jobs/mine").status_code == 200
            last = events(got.read().decode())[-1][1]
        assert last["error"]["message"].startswith("the image was cancelled")


def test_no_prompt_is_in_the_log_nor_in_the_status(short_folder: Path) -> None:
    stream = io.StringIO()
    log = Log(as_json=True, stream=stream)
    with running(short_folder, Script(deaths=2), log=log) as server, server.client() as client:
        draw(client, prompt="SECRET")
        draw(client, prompt="SECRET", n="SECRET", model="SECRET")
        assert "SECRET" not in client.get("/klein/v1/status").text
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {"engine-died", "answered"} <= {line["event"] for line in lines}
    assert "SECRET" not in stream.getvalue()


def wait_until(true: Any) -> None:
    until = time.monotonic() + 5
    while not true():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.005)
