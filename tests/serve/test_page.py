"""The page: that it asks nobody else, runs nothing else, and has a name for everything in it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import httpx
import pytest
from fake_engines import Running


@pytest.fixture(scope="module")
def answer(server: Running) -> Iterator[httpx.Response]:
    with server.client() as client:
        yield client.get("/")


class Elements(HTMLParser):
    """Every element: its tag, its attributes and whether a label is around it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], bool]] = []
        self._labels = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._labels += tag == "label"
        self.found.append((tag, dict(attributes), self._labels > 0))

    def handle_endtag(self, tag: str) -> None:
        self._labels -= tag == "label"


def test_only_its_own_script_and_style_run(answer: httpx.Response) -> None:
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_it_names_no_other_host_and_builds_no_html_from_text(answer: httpx.Response) -> None:
    assert not re.search(r"https?://|//cdn|@import", answer.text)
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", answer.text)


def test_every_input_has_a_name_and_every_id_in_the_script_is_there(
    answer: httpx.Response,
) -> None:
    elements = Elements(answer.text.partition("<script>")[0]).found
    labels = {attributes.get("for") for tag, attributes, _ in elements if tag == "label"}
    for tag, attributes, inside in elements:
        if tag in ("input", "select", "textarea", "progress"):
            named = inside or attributes["id"] in labels or "aria-label" in attributes
            assert named, attributes
    ids = {attributes["id"] for _, attributes, _ in elements if "id" in attributes}
    used = set(re.findall(r"\$\(\"([\w-]+)\"\)", answer.text))
    assert used <= ids, used - ids


def test_what_it_needs_of_the_model_is_there(server: Running) -> None:
    with server.client() as client:
        assert client.get("/klein/v1/model").json()["name"] == "tiny"
