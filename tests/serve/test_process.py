"""`klein serve` as a process with `tiny`, and the commands and clients that use it."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc to see the engine"),
]

LAUNCH = [sys.executable, "-P", "-m", "klein_cli"]
WORKER = b"klein_cli.run.executors.worker_process"
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
"""As it is before torch and others, imported for other tests, set variables."""
WORDS = "a red circle on a white background"
Klein = Callable[..., tuple[int, str, str]]


@dataclass
class Served:
    """A server that runs, whose socket is `path`."""

    process: subprocess.Popen[bytes]
    path: Path

    def client(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.path))
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=60)

    def engine(self) -> int | None:
        """The process of its engine, None where there is none."""
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    stat = (folder / "stat").read_text().rpartition(")")[2].split()
                    if (
                        int(stat[1]) == self.process.pid
                        and WORKER in (folder / "cmdline").read_bytes()
                    ):
                        return int(folder.name)
                except OSError:
                    continue
        return None


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="klein-"))
    yield folder / "engine.sock"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[Served]:
    log = (place.parent / "log").open("wb")
    process = subprocess.Popen(
        [*LAUNCH, "serve", "-m", "tiny", "--socket", str(place), "--no-config"],
        env=ENVIRONMENT,
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
    )
    found = Served(process, place)
    try:
        with found.client() as client:
            wait_until(lambda: place.exists() and client.get("/readyz").status_code == 200)
        yield found
    finally:
        process.terminate()
        code = process.wait(30)
        log.close()
    assert code == 0, (place.parent / "log").read_text()
    assert not place.exists(), "the socket stayed"
    assert WORDS not in (place.parent / "log").read_text(), "a prompt is in the log"


@pytest.fixture
def near(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """The server, where commands of this process look for it."""
    for name in os.environ.keys() - ENVIRONMENT.keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("KLEIN_HOST", str(served.path))
    return served


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.02)


def over_the_api(served: Served, **body: Any) -> bytes:
    with served.client() as client:
        asked = {"prompt": WORDS, "seed": 5, "size": "128x128", **body}
        answer = client.post("/v1/images/generations", json=asked)
        assert answer.status_code == 200, answer.text
        return base64.b64decode(answer.json()["data"][0]["b64_json"])


def test_the_command_the_engine_and_the_api_make_the_same_file(
    near: Served, klein: Klein, empty_folder: Path
) -> None:
    """To the byte: pixels and record."""
    options = ["generate", WORDS, "-m", "tiny", "-s", "5", "--size", "128x128"]
    code, _, said = klein(*options, "-v", "-o", "by-the-engine.png", "--server", "require")
    assert code == 0, said
    assert "drawn by the engine" in said
    assert klein(*options, "-o", "by-itself.png", "--server", "off")[0] == 0
    alone = Path("by-itself.png").read_bytes()
    assert Path("by-the-engine.png").read_bytes() == alone
    assert over_the_api(near) == alone


def test_a_prompt_that_is_too_long_is_told_of_or_refused_before_the_engine_is_asked(
    near: Served, klein: Klein, empty_folder: Path
) -> None:
    long = ["generate", "a red fox " * 300, "-m", "tiny", "-s", "5", "--size", "128x128"]
    long += ["--steps", "1", "--server", "require"]
    code, _, said = klein(*long, "-o", "a.png", "-v")
    assert code == 0, said
    assert "drawn by the engine" in said
    assert "the model does not see its end" in said
    code, _, said = klein(*long, "-o", "b.png", "--strict")
    assert code == 2, said
    assert "the model does not see its end" in said
    assert not Path("b.png").exists()


def test_eight_clients_at_once_get_what_each_would_get_alone(
    near: Served, klein: Klein, empty_folder: Path
) -> None:
    """sglang's images depended on who else asked."""
    lines = [f"{WORDS} {number}" for number in range(4)]
    Path("prompts.txt").write_text("\n".join(lines))
    options = ["generate", "--prompts-file", "prompts.txt", "-m", "tiny", "-s", "5"]
    options += ["--size", "128x128", "--steps", "2"]
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(over_the_api, near, prompt=lines[number % 4], seed=5 + number % 4, steps=2)
            for number in range(8)
        ]
        code, out, said = klein(*options, "-o", "run/", "--server", "require")
    assert code == 0, said
    files = [Path(line).read_bytes() for line in out.splitlines()]
    assert [each.result() for each in asked] == files * 2
    assert klein(*options, "-o", "alone/", "--server", "off")[0] == 0
    assert [path.read_bytes() for path in sorted(Path("alone").glob("*.png"))] == files
    assert len((Path("run") / "manifest.jsonl").read_text().splitlines()) >= 4


def test_an_engine_that_is_killed_loses_no_image(
    near: Served, klein: Klein, empty_folder: Path
) -> None:
    before = near.engine()
    assert before is not None

    def kill() -> None:
        with near.client() as client:
            wait_until(lambda: bool(client.get("/klein/v1/status").json()["jobs"]))
        os.kill(before, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    options = ["-m", "tiny", "-s", "5", "--size", "128x128", "--server", "require"]
    code, _, said = klein("generate", WORDS, *options, "-o", "a.png")
    killer.join()
    assert code == 0, said
    assert Path("a.png").read_bytes() == over_the_api(near)
    assert near.engine() not in (None, before)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--dtype", "bfloat16"], "its --dtype is not the same"),
        (["--kernels", "torch"], "drawn by the engine"),
        (["--device", "cpu", "--dtype", "float32"], "drawn by the engine"),
    ],
)
def test_an_engine_draws_what_it_would_draw_alike_and_nothing_else(
    options: list[str], why: str, near: Served, klein: Klein, empty_folder: Path
) -> None:
    given = ["generate", WORDS, "-m", "tiny", "-s", "5", "--size", "128x128", "--steps", "1"]
    code, _, said = klein(*given, *options, "-v")
    assert code == 0, said
    assert why in said


def test_an_engine_under_other_variables_is_not_used_and_one_that_is_required_is_missed(
    near: Served, klein: Klein, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKL_SOMETHING", "1")
    code, _, said = klein("generate", WORDS, "-m", "tiny", "--server", "require")
    assert code == 1
    assert "its environment is not the same" in said
    assert not list(Path().glob("*.png"))


def test_an_interrupted_command_leaves_nothing_in_the_engine(
    near: Served, empty_folder: Path
) -> None:
    command = [*LAUNCH, "generate", WORDS, "-m", "tiny", "--steps", "900", "--server", "require"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    with near.client() as client:
        wait_until(lambda: bool(client.get("/klein/v1/status").json()["jobs"]))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130, said
        wait_until(lambda: not client.get("/klein/v1/status").json()["jobs"])


def test_ps_shows_what_waits_and_stop_breaks_it_off_by_its_id(near: Served, klein: Klein) -> None:
    heard: list[httpx.Response] = []

    def ask() -> None:
        body = {"prompt": WORDS, "steps": 900, "size": "128x128"}
        headers = {"x-request-id": "mine"}
        with near.client() as client:
            heard.append(client.post("/v1/images/generations", json=body, headers=headers))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: "mine" in klein("ps")[1])
    shown = json.loads(klein("ps", "--json")[1])
    assert [(job["id"], job["state"]) for job in shown["jobs"]] == [("mine", "drawing")]
    assert "tiny" in klein("ps")[1]
    assert klein("stop", "--job", "mine")[0] == 0
    asking.join(30)
    assert heard[0].status_code == 499
    assert klein("stop", "--job", "mine")[0] == 1


def test_an_engine_that_is_unloaded_ends_and_comes_back(near: Served, klein: Klein) -> None:
    assert near.engine() is not None
    assert klein("stop", "--unload")[0] == 0
    assert near.engine() is None
    assert over_the_api(near)
    assert near.engine() is not None


def test_an_edit_by_the_engine_the_api_and_the_command_alone_is_the_same(
    near: Served, klein: Klein, empty_folder: Path
) -> None:
    from PIL import Image

    drawn = over_the_api(near, size="128x144")
    Path("a.png").write_bytes(drawn)
    white = Image.new("L", (128, 144), 0)
    white.paste(255, (32, 32, 96, 96))
    white.save("mask.png")
    hole = Image.new("RGBA", (128, 144), (9, 9, 9, 255))
    hole.paste((0, 0, 0, 0), (32, 32, 96, 96))
    file = io.BytesIO()
    hole.save(file, "PNG")
    words, options = "make it blue", ["-m", "tiny", "-s", "5"]
    for mask in ([], ["--mask", "mask.png"]):
        command = ["edit", "a.png", words, *options, *mask, "-y"]
        code, _, said = klein(*command, "-o", "engine.png", "--server", "require")
        assert code == 0, said
        assert klein(*command, "-o", "alone.png", "--server", "off")[0] == 0
        alone = Path("alone.png").read_bytes()
        assert Path("engine.png").read_bytes() == alone
        sent = [("image", ("x", drawn, "image/png"))]
        sent += [("mask", ("x", file.getvalue(), "image/png"))] * bool(mask)
        with near.client() as client:
            fields = {"prompt": words, "seed": "5"}
            answer = client.post("/v1/images/edits", data=fields, files=sent)
            assert answer.status_code == 200, answer.text
        data = base64.b64decode(answer.json()["data"][0]["b64_json"])
        pixels = [Image.open(io.BytesIO(each)).tobytes() for each in (data, alone)]
        assert pixels[0] == pixels[1]


def test_an_engine_takes_the_adapters_of_a_command_and_leaves_them_out_of_the_next(
    near: Served, klein: Klein, empty_folder: Path
) -> None:
    from adapters import write_for_tiny

    write_for_tiny(Path("a.safetensors"))
    given = ["generate", WORDS, "-m", "tiny", "-s", "5", "--size", "128x128"]
    files = {}
    for name, options in (
        ("adapted", ["--lora", "a.safetensors=2"]),
        ("alone", ["--lora", "a.safetensors=2", "--server", "off"]),
        ("plain", []),
    ):
        code, _, said = klein(*given, "-v", "-o", f"{name}.png", *options)
        assert code == 0, said
        assert ("drawn by the engine" in said) == (name != "alone")
        files[name] = Path(f"{name}.png").read_bytes()
    assert files["adapted"] == files["alone"] != files["plain"]
    assert files["plain"] == over_the_api(near)


def test_an_image_is_reproduced_by_an_engine_that_computes_as_then(
    near: Served, klein: Klein, empty_folder: Path
) -> None:
    Path("a.png").write_bytes(over_the_api(near))
    code, _, said = klein("reproduce", "a.png", "-o", "b.png", "-v", "--server", "require")
    assert code == 0, said
    assert "drawn by the engine" in said
    assert "pixel for pixel" in said
    assert Path("b.png").read_bytes() == Path("a.png").read_bytes()
    code, _, said = klein("reproduce", "a.png", "-o", "c.png", "--dtype", "bfloat16", "-v")
    assert code == 0, said
    assert "drawn by the engine" not in said


def quickly(*options: str) -> subprocess.CompletedProcess[str]:
    """`klein generate` in a process of its own, as a shell starts it."""
    code = (
        "import sys, klein_cli.__main__ as m; code = m.main();"
        "print('typer' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-P", "-c", code, "generate", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_plain_command_line_gets_the_same_file_by_the_shortest_way(
    near: Served, empty_folder: Path
) -> None:
    options = [WORDS, "-m", "tiny", "-s", "5", "--size", "128x128"]
    done = quickly(*options)
    assert (done.returncode, done.stderr) == (0, "False\n"), done.stderr
    assert done.stdout == "a-red-circle-on-a-white-background-5.png\n"
    assert Path(done.stdout.strip()).read_bytes() == over_the_api(near)
    again = quickly(*options)
    assert again.stdout == "a-red-circle-on-a-white-background-5-2.png\n"
    named = quickly(WORDS, "-m", "tiny", "--steps", "1", "-o", "x/a.png")
    assert named.stdout == "x/a.png\n"
    assert named.stderr.startswith("seed: ")


def test_a_plain_command_line_that_cannot_go_the_shortest_way_goes_the_other(
    near: Served, klein: Klein, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, code in (
        (["-m", "tiny", "--steps", "0"], 2),
        (["-m", "nothing-of-the-kind"], 3),
        (["-m", "tiny", "--size", "16x16"], 2),
    ):
        done = quickly(WORDS, *options)
        assert (done.returncode, "True" in done.stderr) == (code, True)
        assert done.stderr.count("error:") == 1
    monkeypatch.setenv("MKL_SOMETHING", "1")
    done = quickly(WORDS, "-m", "tiny", "--size", "128x128", "--steps", "1", "-o", "a.png")
    assert (done.returncode, "True" in done.stderr) == (0, True)


def test_previews_change_no_bit(near: Served) -> None:
    with near.client() as client:
        body = {"prompt": WORDS, "seed": 5, "size": "128x128", "stream": True, "partial_images": 3}
        text = client.post("/v1/images/generations", json=body).text
    images = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert [each["type"].rpartition(".")[2] for each in images] == ["partial_image"] * 3 + [
        "completed"
    ]
    assert base64.b64decode(images[-1]["b64_json"]) == over_the_api(near)
    from PIL import Image

    seen = [Image.open(io.BytesIO(base64.b64decode(each["b64_json"]))) for each in images]
    assert {image.size for image in seen} == {(128, 128)}
    assert len({image.tobytes() for image in seen}) == 4


def test_a_second_server_is_refused(near: Served) -> None:
    command = [*LAUNCH, "serve", "-m", "tiny", "--socket", str(near.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "an engine is running" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "would serve everybody"),
        (["--keep-alive", "soon"], "--keep-alive soon is not valid"),
        (["--log", "xml"], "--log xml is not valid"),
        (["--gpus", "0"], "--gpus 0 is not valid"),
        (["--api-key-file", "/nonexistent"], "cannot read"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(
    options: list[str], said: str, klein: Klein, place: Path
) -> None:
    code, _, stderr = klein("serve", "-m", "tiny", "--socket", place.with_name("other"), *options)
    assert code == 2
    assert said in stderr
    assert not place.with_name("other").exists()


def test_keys_that_others_can_read_or_guess_are_refused(klein: Klein, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("x" * 20)
    keys.chmod(0o644)
    assert "read by other users" in klein("serve", "-m", "tiny", "--api-key-file", keys)[2]
    keys.chmod(0o600)
    keys.write_text("short\n")
    assert "at least 16" in klein("serve", "-m", "tiny", "--api-key-file", keys)[2]


def test_without_an_engine_one_is_missed_or_started(
    klein: Klein, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    new = place.with_name("new.sock")
    monkeypatch.setenv("KLEIN_HOST", str(new))
    given = ["generate", WORDS, "-m", "tiny", "--size", "128x128", "--steps", "1", "-v"]
    code, _, said = klein(*given, "--server", "require")
    assert (code, "none is running" in said) == (1, True), said
    code, _, said = klein(*given, "--server", "start")
    assert code == 0, said
    assert "drawn by the engine" in said
    assert klein("stop")[0] == 0
    assert not new.exists()
    assert klein("ps")[0] == 1
