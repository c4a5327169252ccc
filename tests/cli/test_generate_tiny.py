"""The quick start: the embedded model, from a prompt to a picture that shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

from klein_cli.cli.app import main

RED = (220, 40, 40)
WHITE = (248, 248, 248)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def share(path: str, colour: tuple[int, int, int]) -> float:
    """The share of the picture that has this colour, give or take 25."""
    with Image.open(path) as image:
        pixels = numpy.asarray(image.convert("RGB")).astype(int)
    return float((abs(pixels - colour).max(axis=2) <= 25).mean())


def test_the_quick_start_draws_a_red_circle_on_white(capfd: pytest.CaptureFixture[str]) -> None:
    prompt = "a red circle on a white background"
    assert main(["generate", prompt, "--model", "tiny", "-o", "out.png", "-s", "1"]) == 0
    assert capfd.readouterr().out == "out.png\n"
    with Image.open("out.png") as image:
        assert image.size == (256, 256)
        assert json.loads(image.text["klein"])["model"] == {"name": "tiny", "revision": None}
    assert share("out.png", WHITE) > 0.4
    assert share("out.png", RED) > 0.01
    assert share("out.png", WHITE) + share("out.png", RED) > 0.9


@pytest.mark.parametrize("size", ["128x384", "384x128", "144x144"])
def test_tiny_draws_at_its_other_sizes(size: str) -> None:
    arguments = ["a blue square on a yellow background", "-m", "tiny", "--size", size]
    assert main(["generate", *arguments, "-o", "out.png", "-s", "1", "-q"]) == 0
    with Image.open("out.png") as image:
        assert f"{image.width}x{image.height}" == size
    assert share("out.png", (245, 215, 40)) > 0.3
    assert share("out.png", (40, 90, 220)) > 0.01


def test_a_picture_does_not_depend_on_its_batch() -> None:
    Path("p.txt").write_text(
        "a red circle\n"
        "a small blue star above a green square on a black background\n"
        "a orange star\n"
    )
    common = ["generate", "--prompts-file", "p.txt", "-m", "tiny", "-s", "7", "-q"]
    assert main([*common, "-o", "alone/", "--batch-size", "1", "--device", "cpu"]) == 0
    assert main([*common, "-o", "together/", "--batch-size", "3", "--device", "cpu"]) == 0
    names = sorted(path.name for path in Path("alone").iterdir())
    assert len(names) == 3
    for name in names:
        assert Path("alone", name).read_bytes() == Path("together", name).read_bytes()


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
