"""/sdapi/v1 as SillyTavern, Open WebUI and LibreChat call it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engines import Running, Script, running

SILLY = {
    "prompt": "a red fox",
    "negative_prompt": "",
    "width": 128,
    "height": 128,
    "steps": 4,
    "cfg_scale": 1,
    "seed": 7,
    "batch_size": 1,
}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def test_what_sillytavern_asks_in_its_order(client: httpx.Client) -> None:
    assert client.options("/v1/images/generations").status_code == 204
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    body = client.post("/sdapi/v1/txt2img", json=SILLY).json()
    assert len(body["images"]) == 1
    info = json.loads(body["info"])
    assert (info["seed"], info["width"], info["height"]) == (7, 128, 128)
    assert info["infotexts"][0].startswith("a red fox\n")


def test_what_is_to_choose_from(client: httpx.Client) -> None:
    assert client.get("/sdapi/v1/sd-models").json()[0]["title"] == "tiny"
    assert client.get("/sdapi/v1/samplers").json()[0]["name"] == "Euler"
    assert client.get("/sdapi/v1/schedulers").json()
    for name in ("upscalers", "loras", "sd-vae"):
        assert client.get(f"/sdapi/v1/{name}").json() == []


@pytest.mark.parametrize("name", ["stream", "progress", "partial_images", "response_format"])
def test_what_only_openais_routes_have_is_refused(client: httpx.Client, name: str) -> None:
    """They were taken and did nothing."""
    answer = client.post("/sdapi/v1/txt2img", json={**SILLY, name: True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def test_override_settings_load_nothing_and_that_is_said(
    server: Running, client: httpx.Client
) -> None:
    loads = server.script.loads
    model = {"sd_model_checkpoint": "other/model"}
    body = client.post("/sdapi/v1/txt2img", json={**SILLY, "override_settings": model}).json()
    assert any("override_settings" in said for said in json.loads(body["info"])["warnings"])
    assert client.post("/sdapi/v1/options", json=model).json() == {"sd_model_checkpoint": "tiny"}
    assert server.script.loads == loads


@pytest.mark.parametrize(
    "body", [{"batch_size": 11}, {"n_iter": "2"}, {"batch_size": 5, "n_iter": 5}, {"steps": -1}]
)
def test_what_cannot_be_is_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post("/sdapi/v1/txt2img", json={**SILLY, **body}).status_code == 400


def test_progress_and_interrupt_are_of_the_client_that_asks(short_folder: Path) -> None:
    """A1111's break off whatever is drawn, whoever asked for it."""
    answers: list[httpx.Response] = []
    script = Script(step_seconds=0.15)
    with running(short_folder, script) as server:
        mine = {"authorization": "Bearer mine"}
        body = {"prompt": "b", "size": "128x128"}

        def ask() -> None:
            with server.client(headers=mine) as client:
                answers.append(client.post("/sdapi/v1/txt2img", json=SILLY))

        asking = threading.Thread(target=ask)
        asking.start()
        with server.client() as other, server.client(headers=mine) as me:
            until = time.monotonic() + 5
            while not me.get("/sdapi/v1/progress").json()["progress"] > 0:
                assert time.monotonic() < until
                time.sleep(0.01)
            assert other.get("/sdapi/v1/progress").json()["progress"] == 0
            other.post("/sdapi/v1/interrupt")
            assert not script.cancelled
            me.post("/sdapi/v1/interrupt")
            asking.join(5)
            assert answers[0].status_code == 499
            assert other.post("/v1/images/generations", json=body).status_code == 200
