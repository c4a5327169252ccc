"""--show: what goes to which terminal, and that it goes nowhere else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from records import record
from terminal import kitty, on_terminal, silent, sixel

from klein_cli.output.png import encode
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings

pytestmark = pytest.mark.process

HALF_BLOCK = "▀".encode()
RED = b"200;10;20"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All of one red."""
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    recipe = Recipe(prompt="red", seed=1, width=96, height=64, steps=1, guidance=1.0, model="tiny")
    pixels = numpy.full((64, 96, 3), (200, 10, 20), dtype=numpy.uint8)
    settings = Settings(device="cpu", dtype="float32", attention="sdpa")
    written = record(recipe, settings, provenance={})
    path.write_bytes(encode(pixels, ".png", written, ""))
    return str(path)


def test_half_blocks_where_the_terminal_says_nothing(picture: str) -> None:
    code, written = on_terminal("info", "--show", picture, answer=silent)
    assert code == 0
    lines = [line for line in written.splitlines() if HALF_BLOCK in line]
    assert RED in written
    # In a window of 40 rows: no taller than 24, and of the picture's own shape.
    assert len(lines) == 24
    assert lines[0].count(HALF_BLOCK) == 24 * 2 * 96 // 64


def test_a_terminal_with_256_colours_gets_those(picture: str) -> None:
    _, written = on_terminal("info", "--show", picture, env={"COLORTERM": ""})
    assert HALF_BLOCK in written
    assert b"38;5;" in written
    assert RED not in written


def test_sixels_where_they_are_known(picture: str) -> None:
    code, written = on_terminal("info", "--show", picture, answer=sixel)
    assert code == 0
    assert re.search(rb"\x1bP[0-9;]*q", written)
    assert HALF_BLOCK not in written


def test_kittys_protocol_where_it_is_known(picture: str) -> None:
    code, written = on_terminal("info", "--show", picture, answer=kitty)
    assert code == 0
    assert re.search(rb"\x1b_G[^\x1b]*f=100[^\x1b]*;iVBOR", written)
    assert HALF_BLOCK not in written


def test_a_prompt_on_standard_input_leaves_half_blocks(
    random_snapshot: str, tmp_path: Path
) -> None:
    """There is nobody to ask then; the library's question would raise."""
    size = ["-m", random_snapshot, "--size", "32x32", "--steps", "1", "--device", "cpu"]
    out = str(tmp_path / "a.png")
    code, written = on_terminal(
        "generate", "-", "--show", *size, "-o", out, stdin="a cat", answer=sixel
    )
    assert code == 0, written
    assert HALF_BLOCK in written
    # The path stands on a line of its own, whatever the bar did before.
    assert out.encode() in re.split(rb"[\r\n]", re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", written))


@pytest.mark.parametrize(
    ("arguments", "env"),
    [(["--json"], {}), ([], {"TERM": "dumb"})],
    ids=["json", "dumb terminal"],
)
def test_nothing_where_it_would_be_in_the_way(
    picture: str, arguments: list[str], env: dict[str, str]
) -> None:
    _, plain = on_terminal("info", picture, *arguments, env=env)
    _, written = on_terminal("info", "--show", picture, *arguments, env=env)
    assert written == plain
    assert b"\x1b" not in written


@pytest.mark.parametrize("arguments", [["-q"], ["--json"]])
def test_a_quiet_run_and_a_programs_run_show_nothing(
    random_snapshot: str, tmp_path: Path, arguments: list[str]
) -> None:
    size = ["-m", random_snapshot, "--size", "32x32", "--steps", "1", "--device", "cpu"]
    out = ["-o", f"{tmp_path}/a.png"]
    _, written = on_terminal("generate", "a", "--show", *size, *out, *arguments, answer=sixel)
    assert HALF_BLOCK not in written
    assert b"\x1bP" not in written
    assert b"\x1b[c" not in written


def test_without_colours_shades_of_characters(picture: str) -> None:
    _, written = on_terminal("info", "--show", picture, env={"NO_COLOR": "1"})
    assert HALF_BLOCK not in written
    assert "░".encode() in written
    assert not re.search(rb"\x1b\[[0-9;]*m", written)


def test_a_background_job_asks_nothing_and_is_not_stopped(picture: str) -> None:
    code, written = on_terminal("info", "--show", picture, background=True, seconds=30)
    assert code == 0
    assert b"prompt" in written
    assert b"\x1b" not in written


def test_in_a_pipe_the_library_is_not_even_imported(picture: str) -> None:
    script = (
        "import sys; from klein_cli.cli.app import main; code = main(sys.argv[1:]);"
        "sys.exit(code or 'textual_image' in sys.modules)"
    )
    show, plain = (
        subprocess.run(
            [sys.executable, "-c", script, "info", *more, picture], capture_output=True, check=True
        )
        for more in (["--show"], [])
    )
    assert show.stdout == plain.stdout
    assert show.stderr == b""


def test_a_picture_that_cannot_be_shown_ends_nothing(picture: str, tmp_path: Path) -> None:
    """Its record can be read and its pixels cannot: the recipe is printed all the same."""
    data = Path(picture).read_bytes()
    broken = tmp_path / "broken.png"
    broken.write_bytes(data[: data.index(b"IDAT") + 20])
    code, written = on_terminal("info", "--show", str(broken))
    assert code == 0, written
    assert b"Traceback" not in written
    assert b"prompt" in written
