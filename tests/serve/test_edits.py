"""Edits over the API: what is sent, what the engine gets of it, and what strangers try."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy
import pytest
from fake_engines import Running
from PIL import Image

from klein_cli.images.store import ImageStore

WORDS = {"prompt": "make it blue", "seed": "7"}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def image(mode: str = "RGB", size: tuple[int, int] = (160, 128), kind: str = "PNG") -> bytes:
    noise = numpy.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), numpy.uint8)
    made = Image.fromarray(noise).convert(mode)
    file = io.BytesIO()
    made.save(file, kind)
    return file.getvalue()


def mask(size: tuple[int, int] = (160, 128)) -> bytes:
    """OpenAI's: what is transparent is painted anew. Black elsewhere, as klein's own is not."""
    made = Image.new("RGBA", size, (0, 0, 0, 255))
    made.paste((0, 0, 0, 0), (16, 16, 80, 80))
    file = io.BytesIO()
    made.save(file, "PNG")
    return file.getvalue()


def edit(client: httpx.Client, files: list[Any], **body: Any) -> httpx.Response:
    return client.post("/v1/images/edits", data={**WORDS, **body}, files=files)


def url(data: bytes) -> dict[str, str]:
    return {"image_url": "data:image/png;base64," + base64.b64encode(data).decode()}


def test_images_go_to_the_engine_in_their_order_by_their_own_digests(
    server: Running, client: httpx.Client
) -> None:
    first, second = image(), image(kind="JPEG")
    files = [
        ("image[]", ("../../etc/passwd", first, "application/octet-stream")),
        ("image[]", ("cap/a.png", second, "image/jpeg")),
    ]
    answer = edit(client, files)
    assert answer.status_code == 200, answer.text
    request = server.script.drawn[-1]
    digests = [hashlib.sha256(data).hexdigest() for data in (first, second)]
    references = request.recipes[0].references
    assert [reference.sha256 for reference in references] == digests
    assert [reference.name for reference in references] == ["image 1", "image 2"]
    assert answer.json()["data"][0]["recipe"]["references"][0]["sha256"] == digests[0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_what_the_engine_decodes_is_our_own_file_of_the_same_pixels(
    server: Running, client: httpx.Client, kind: str
) -> None:
    """A stranger's file must not reach a decoder beside the GPU."""
    sent = image(kind=kind)
    assert edit(client, [("image", ("a", sent, "image/x"))]).status_code == 200
    (file,) = server.script.drawn[-1].files
    assert file.path is None
    assert file.data != sent
    assert file.data.startswith(b"\x89PNG")
    store = ImageStore()
    file.put_into(store)
    theirs, ours = store.picture(file.sha256), ImageStore()
    ours.add(sent)
    assert numpy.array_equal(theirs.rgb, ours.picture(file.sha256).rgb)


def test_a_mask_of_openais_is_white_where_it_is_transparent(
    server: Running, client: httpx.Client
) -> None:
    files = [("image", ("a", image(), "image/png")), ("mask", ("m", mask(), "image/png"))]
    answer = edit(client, files, size="256x256")
    assert answer.status_code == 200, answer.text
    request = server.script.drawn[-1]
    (recipe,) = request.recipes
    assert recipe.mask is not None
    store = ImageStore()
    for file in request.files:
        file.put_into(store)
    white = store.mask(recipe.mask.sha256 or "").white
    expected = numpy.zeros((128, 160), bool)
    expected[16:80, 16:80] = True
    assert numpy.array_equal(white, expected)
    assert any("size has no effect" in said for said in answer.json()["warnings"])


def test_json_with_data_urls_is_the_same_as_a_form(server: Running, client: httpx.Client) -> None:
    body = {"prompt": "make it blue", "seed": 7, "images": [url(image())], "mask": url(mask())}
    assert client.post("/v1/images/edits", json=body).status_code == 200
    by_json = server.script.drawn[-1]
    files = [("image", ("a", image(), "image/png")), ("mask", ("m", mask(), "image/png"))]
    edit(client, files)
    assert server.script.drawn[-1].recipes == by_json.recipes


def test_the_events_of_a_stream_are_those_of_edits(client: httpx.Client) -> None:
    body = {"prompt": "a", "images": [url(image())], "stream": True, "partial_images": 1}
    text = client.post("/v1/images/edits", json=body).text
    kinds = [line[7:] for line in text.splitlines() if line.startswith("event: ")]
    assert kinds == ["image_edit.partial_image", "image_edit.completed"]


@pytest.mark.parametrize(
    "images",
    [
        None,
        [],
        [{"file_id": "file-1"}],
        [{"image_url": "http://169.254.169.254/latest/meta-data"}],
        [{"image_url": "https://example.org/a.png"}],
        [{"image_url": "file:///etc/passwd"}],
        [{"image_url": "data:text/html;base64,AAAA"}],
        [{"image_url": "data:image/png;base64,%%%"}],
        [{"image_url": "data:image/png;base64,AAAA", "detail": "high"}],
        ["data:image/png;base64,AAAA"],
        [url(image())] * 11,
    ],
)
def test_nothing_is_fetched_and_nothing_but_images_is_taken(
    server: Running, client: httpx.Client, images: Any
) -> None:
    """vLLM's image_url fetched what the server alone could reach: GHSA-3f6c-7fw2-ppm4."""
    before = len(server.script.drawn)
    answer = client.post("/v1/images/edits", json={"prompt": "a", "images": images})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert len(server.script.drawn) == before


def bomb(side: int) -> bytes:
    """A PNG of zeros: a few kilobytes that become side * side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((side + 7) // 8 + 1) * side, 9)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    "data",
    [
        bomb(13_000),
        b"",
        b"not an image",
        image()[:200],
        b"GIF89a" + bytes(100),
        b"II*\0" + bytes(100),
        b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(100),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        image(size=(16, 4096)),
    ],
)
def test_hostile_files_are_refused_in_our_own_words(
    server: Running, client: httpx.Client, data: bytes
) -> None:
    """Pillow opens 43 formats, and its words have held addresses: CVE-2026-22778."""
    before = len(server.script.drawn)
    answer = edit(client, [("image", ("a.png", data, "image/png"))])
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert not re.search(r"\b0x|PIL|Error", message)
    assert len(server.script.drawn) == before


@pytest.mark.parametrize(
    "given",
    [
        [("mask", ("m", image(), "image/png"))],
        [("mask", ("m", mask((96, 96)), "image/png"))],
        [("mask", ("m", mask(), "image/png"))] * 2,
        [("mask", ("m", b"x" * 4_000_001, "image/png"))],
        [("other", ("m", mask(), "image/png"))],
    ],
)
def test_a_mask_that_is_none_does_not_fit_or_is_too_much_is_refused(
    client: httpx.Client, given: list[Any]
) -> None:
    answer = edit(client, [("image", ("a", image(), "image/png")), *given])
    assert answer.status_code in (400, 413)


def test_forms_of_too_many_parts_are_refused(client: httpx.Client) -> None:
    """CVE-2024-47874 and others: parts without end."""
    small = [("image[]", (f"{n}", b"x", "image/png")) for n in range(18)]
    assert edit(client, small).status_code == 400
    fields = {f"f{number}": "x" for number in range(60)}
    assert edit(client, [("image", ("a", image(), "image/png"))], **fields).status_code == 400
    long = {"prompt": "a" * 70_000}
    assert edit(client, [("image", ("a", image(), "image/png"))], **long).status_code == 400


def test_a_page_of_another_site_cannot_send_a_form(client: httpx.Client) -> None:
    """Browsers send forms of files across sites without asking."""
    answer = client.post(
        "/v1/images/edits",
        data=WORDS,
        files=[("image", ("a", image(), "image/png"))],
        headers={"origin": "http://evil.example"},
    )
    assert answer.status_code == 403
