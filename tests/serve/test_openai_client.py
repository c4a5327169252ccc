"""The API through OpenAI's own Python client, where that is installed."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engines import Running, pixels_of
from PIL import Image

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    """Any proxy of this machine's is for others."""
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http) as found:
        yield found


def png(mode: str = "RGB") -> bytes:
    made = Image.new(mode, (128, 128), (9, 9, 9, 255)[: len(mode)])
    if mode == "RGBA":
        made.paste((0, 0, 0, 0), (32, 32, 96, 96))
    file = io.BytesIO()
    made.save(file, "PNG")
    return file.getvalue()


def test_it_draws(client: Any, server: Running) -> None:
    asked = {"prompt": "a red fox", "size": "128x144", "n": 2, "extra_body": {"seed": 7}}
    answer = client.images.generate(model="gpt-image-2", **asked)
    assert [each.model_extra["seed"] for each in answer.data] == [7, 8]
    data = base64.b64decode(answer.data[0].b64_json)
    recipe = server.script.drawn[-2].recipes[0]
    assert Image.open(io.BytesIO(data)).tobytes() == pixels_of(recipe).tobytes()
    assert answer.model_extra["warnings"] == []
    assert [model.id for model in client.models.list()] == ["tiny", "nick"]


@pytest.mark.parametrize("count", [1, 2])
def test_it_edits_one_image_or_several(client: Any, server: Running, count: int) -> None:
    image: Any = png() if count == 1 else [("a.png", png()) for _ in range(count)]
    answer = client.images.edit(model="tiny", image=image, prompt="make it blue")
    assert answer.data[0].b64_json
    assert len(server.script.drawn[-1].recipes[0].references) == count


def test_it_edits_with_a_mask(client: Any, server: Running) -> None:
    client.images.edit(model="tiny", image=png(), mask=png("RGBA"), prompt="a blue door")
    request = server.script.drawn[-1]
    assert request.recipes[0].mask is not None
    (white,) = [file.data for file in request.files if file.name == "mask"]
    assert Image.open(io.BytesIO(white)).convert("1").getbbox() == (32, 32, 96, 96)


def test_every_event_of_a_stream_is_one_that_it_knows(client: Any) -> None:
    asked = {"prompt": "a red fox", "size": "128x128", "partial_images": 2}
    events = list(client.images.generate(model="tiny", stream=True, **asked))
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert all(base64.b64decode(event.b64_json) for event in events)


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        ({"model": "other"}, "NotFoundError", "model"),
        ({"size": "127x128"}, "BadRequestError", "size"),
        ({"prompt": "a fox " * 600, "extra_body": {"strict": True}}, "BadRequestError", "prompt"),
    ],
)
def test_what_is_refused_is_raised_by_its_field(
    client: Any, body: dict[str, Any], kind: str, param: str
) -> None:
    with pytest.raises(getattr(openai, kind)) as error:
        client.images.generate(**{"model": "tiny", "prompt": "a red fox", **body})
    assert error.value.param == param
