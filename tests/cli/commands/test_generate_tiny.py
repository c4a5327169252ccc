"""The quick start: the embedded model, from a prompt to an image that shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

from klein_cli.cli.app import main

pytestmark = [pytest.mark.lengthy, pytest.mark.usefixtures("empty_folder")]

PALETTE = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 215, 40),
    "green": (40, 160, 70),
    "blue": (40, 90, 220),
    "purple": (140, 60, 180),
    "white": (248, 248, 248),
    "black": (18, 18, 18),
}
Picture = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.int64]]


def pixels(path: str) -> Picture:
    """(height, width, 3)."""
    with Image.open(path) as image:
        return numpy.asarray(image.convert("RGB")).astype(int)


def where(picture: Picture, name: str) -> Picture:
    """(height, width) bool: the pixels that have this colour, give or take 25."""
    found: Picture = abs(picture - PALETTE[name]).max(axis=2) <= 25
    return found


def middle(picture: Picture, name: str) -> tuple[float, float]:
    """(x, y) of all that is nearest to this colour of the palette."""
    distances = [((picture - colour) ** 2).sum(axis=2) for colour in PALETTE.values()]
    nearest = numpy.argmin(distances, axis=0) == list(PALETTE).index(name)
    assert nearest.mean() > 0.005, f"there is no {name}"
    rows, columns = numpy.nonzero(nearest)
    return float(columns.mean()), float(rows.mean())


def test_the_quick_start_draws_red_on_white(capfd: pytest.CaptureFixture[str]) -> None:
    prompt = "a red circle on a white background"
    assert main(["generate", prompt, "--model", "tiny", "-o", "out.png", "-s", "1"]) == 0
    assert capfd.readouterr().out == "out.png\n"
    with Image.open("out.png") as image:
        assert image.size == (256, 256)
        model = json.loads(image.text["klein"])["model"]
    assert len(model.pop("weights")) == 32
    assert model == {"name": "tiny", "repo": None, "revision": None}
    drawn = pixels("out.png")
    white, red = where(drawn, "white").mean(), where(drawn, "red").mean()
    assert white > 0.8
    assert 0.01 < red < 0.15
    assert white + red > 0.9


@pytest.mark.parametrize("size", ["128x384", "384x128", "144x144", "384x384"])
def test_tiny_draws_at_its_other_sizes(size: str) -> None:
    arguments = ["a blue square on a yellow background", "-m", "tiny", "--size", size]
    assert main(["generate", *arguments, "-o", "out.png", "-s", "1", "-q"]) == 0
    drawn = pixels("out.png")
    assert f"{drawn.shape[1]}x{drawn.shape[0]}" == size
    assert where(drawn, "yellow").mean() > 0.7
    # What is least like the background leans to blue.
    difference = abs(drawn - PALETTE["yellow"]).sum(axis=2)
    red, _, blue = drawn[difference >= numpy.quantile(difference, 0.997)].mean(axis=0)
    assert blue > red


@pytest.mark.parametrize(
    ("relation", "axis", "sign"),
    [("to the left of", 0, 1), ("to the right of", 0, -1), ("above", 1, 1), ("below", 1, -1)],
)
def test_things_lie_where_the_words_put_them(relation: str, axis: int, sign: int) -> None:
    prompt = f"a red square {relation} a blue circle on a white background"
    assert main(["generate", prompt, "-m", "tiny", "-o", "out.png", "-s", "7", "-q"]) == 0
    drawn = pixels("out.png")
    first, second = middle(drawn, "red"), middle(drawn, "blue")
    assert sign * (second[axis] - first[axis]) > 40
    assert abs(second[1 - axis] - first[1 - axis]) < 40


def test_a_picture_does_not_depend_on_its_batch() -> None:
    Path("p.txt").write_text(
        "a red circle\n"
        "a small blue star above a green square on a black background\n"
        "a orange star\n"
    )
    common = ["generate", "--prompts-file", "p.txt", "-m", "tiny", "-s", "7", "-q"]
    assert main([*common, "-o", "alone/", "--batch-size", "1", "--device", "cpu"]) == 0
    assert main([*common, "-o", "together/", "--batch-size", "3", "--device", "cpu"]) == 0
    names = sorted(path.name for path in Path("alone").glob("*.png"))
    assert len(names) == 3
    for name in names:
        assert Path("alone", name).read_bytes() == Path("together", name).read_bytes()


@pytest.mark.process
def test_tiny_needs_no_network() -> None:
    """Any attempt to open a connection fails the run."""
    script = (
        "import socket, sys\n"
        "def refuse(*_): raise OSError('no network in this test')\n"
        "socket.socket.connect = refuse\n"
        "socket.getaddrinfo = refuse\n"
        "from klein_cli.cli.app import main\n"
        "sys.exit(main(['generate', 'a red circle', '-m', 'tiny', '-o', 'out.png']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "out.png\n"), done.stderr
