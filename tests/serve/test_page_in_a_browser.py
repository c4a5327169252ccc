"""The page in a real browser: it draws, cancels, edits its form from a recipe and asks nobody."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from browser import Browser, browsing
from fake_engines import Running, Script, running

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        not (browser.CHROMIUM and browser.DRIVER), reason="needs chromium and chromedriver"
    ),
]


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browsing() as found:
        yield found


@pytest.fixture
def page(window: Browser, short_folder: Path) -> Iterator[tuple[Browser, Running]]:
    with running(short_folder, Script(step_seconds=0.1)) as server:
        window.open(server.url)
        wait_until(lambda: window.run("return document.getElementById('size').options.length > 1"))
        yield window, server


def wait_until(true: Callable[[], Any]) -> None:
    until = time.monotonic() + 15
    while not true():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.05)


def status(window: Browser) -> str:
    return str(window.run("return document.getElementById('status').textContent"))


def write(window: Browser, **values: object) -> None:
    for name, value in values.items():
        window.run("document.getElementById(arguments[0]).value = arguments[1]", name, str(value))


def test_it_draws_by_the_keyboard_alone_and_asks_nobody_but_its_server(
    page: tuple[Browser, Running],
) -> None:
    window, server = page
    window.log("performance")
    write(window, prompt="a red fox", seed=7, width=128, height=128)
    window.run("document.getElementById('prompt').focus()")
    window.run(
        "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', ctrlKey: true}))"
    )
    wait_until(lambda: status(window) == "Done.")
    shown = "return [...document.querySelectorAll('#results img')].map("
    assert window.run(shown + "i => [i.alt, i.naturalWidth])") == [["a red fox", 128]]
    addresses = [a for a in window.requested() if not a.startswith(("data:", "blob:"))]
    assert all(address.startswith(server.url) for address in addresses)
    assert not [entry for entry in window.log("browser") if entry["level"] == "SEVERE"]
    assert window.run("return document.querySelectorAll('#history li').length") >= 1


def test_escape_cancels_and_the_engine_draws_for_nobody(page: tuple[Browser, Running]) -> None:
    window, server = page
    write(window, prompt="a red fox", width=128, height=128, steps=900)
    window.click("#draw")
    wait_until(lambda: bool(server.script.drawn))
    window.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    wait_until(lambda: status(window) == "Cancelled.")
    wait_until(lambda: not server.service.dispatcher.drawing)


def test_a_file_that_is_dropped_fills_the_form(page: tuple[Browser, Running]) -> None:
    window, server = page
    with server.client() as client:
        asked = {"prompt": "a {brace}", "seed": 99, "size": "144x128"}
        answer = client.post("/v1/images/generations", json=asked).json()
    data = answer["data"][0]["b64_json"]
    assert base64.b64decode(data).startswith(b"\x89PNG")
    window.run_async(
        "const done = arguments[1]; const bytes = Uint8Array.from(atob(arguments[0]),"
        " c => c.charCodeAt(0)); take([new File([bytes], 'a.png', {type: 'image/png'})])"
        ".then(() => done());",
        data,
    )
    fields = ["prompt", "seed", "width", "height"]
    values = [window.run(f"return document.getElementById('{name}').value") for name in fields]
    assert values == ["a {brace}", "99", "144", "128"]
    window.run("window.said = command()")
    assert "klein generate 'a {brace}' -m tiny -s 99" in window.run("return window.said")


def test_nothing_is_wider_than_a_telephone(page: tuple[Browser, Running]) -> None:
    window, _ = page
    window.run("document.body.style.width = '390px'")
    assert window.run("return document.querySelector('main').scrollWidth") <= 390
