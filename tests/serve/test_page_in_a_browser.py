"""The page in a real browser: it draws, cancels, edits its form from a recipe and asks nobody."""

from __future__ import annotations

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


def drawn(server: Running, **body: object) -> str:
    """An image in base64."""
    with server.client() as client:
        answer = client.post("/v1/images/generations", json={"steps": 1, **body}).json()
    return str(answer["data"][0]["b64_json"])


def to_edit(window: Browser, server: Running) -> None:
    """Put an image of 128x128 pixels among those to be edited."""
    window.run_async(
        "const done = arguments[1]; const bytes = Uint8Array.from(atob(arguments[0]),"
        " c => c.charCodeAt(0)); add(new Blob([bytes], {type: 'image/png'}), 'a.png')"
        ".then(() => done());",
        drawn(server, prompt="a door", size="128x128"),
    )
    wait_until(lambda: window.run("return document.getElementById('brush').width") == 128)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_file_that_is_dropped_fills_the_form(page: tuple[Browser, Running], kind: str) -> None:
    """A record in a JPEG or WebP was looked for in the comment, where it no longer is."""
    window, server = page
    data = drawn(server, prompt="a {brace}", seed=99, size="144x128", output_format=kind)
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
    """A file's field made the form wider than the window."""
    window, server = page
    to_edit(window, server)
    window.run("document.querySelector('details').open = true")
    window.resize(390, 844)
    try:
        wide = "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
        needed, there = window.run(wide)
        assert needed == there <= 390
    finally:
        window.resize(0, 0)


def test_a_stroke_has_no_gaps_and_becomes_the_apis_mask(page: tuple[Browser, Running]) -> None:
    """A pointer that moves fast is heard of at a few places only: dots were painted there."""
    window, server = page
    to_edit(window, server)
    rows = window.run_async(
        "const done = arguments[0], canvas = document.getElementById('brush');"
        "const box = canvas.getBoundingClientRect();"
        "for (const [type, x] of [['pointerdown', .1], ['pointermove', .9]])"
        " canvas.dispatchEvent(new PointerEvent(type, {buttons: 1,"
        " clientX: box.left + box.width * x, clientY: box.top + box.height / 2}));"
        "maskUrl().then(async (url) => {"
        " const image = Object.assign(new Image(), {src: url}); await image.decode();"
        " const seen = new OffscreenCanvas(image.width, image.height).getContext('2d');"
        " seen.drawImage(image, 0, 0);"
        " const alpha = (y) => [...seen.getImageData(0, y, image.width, 1).data]"
        "  .filter((_, at) => at % 4 === 3);"
        " done([alpha(image.height / 2), alpha(2)]); }).catch((error) => done(String(error)));"
    )
    middle, top = rows
    assert set(middle[20:110]) == {0}, "the stroke has gaps"
    assert set(top) == {255}


def test_an_edit_with_a_painted_mask_is_drawn(page: tuple[Browser, Running]) -> None:
    window, server = page
    to_edit(window, server)
    window.run(
        "const canvas = document.getElementById('brush'), box = canvas.getBoundingClientRect();"
        "canvas.dispatchEvent(new PointerEvent('pointerdown', {buttons: 1,"
        " clientX: box.left + box.width / 2, clientY: box.top + box.height / 2}))"
    )
    write(window, prompt="a blue door", steps=2, width="", height="")
    window.click("#draw")
    wait_until(lambda: status(window) == "Done.")
    (recipe,) = server.script.drawn[-1].recipes
    assert recipe.prompt == "a blue door"
    assert len(recipe.references) == 1
    assert recipe.mask is not None
