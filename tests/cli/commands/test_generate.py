"""`klein generate` on a small random model: the whole way, from words to files and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from klein_cli.cli.app import main

pytestmark = pytest.mark.usefixtures("empty_folder")

QUICK = ("--size", "64x64", "--steps", "1", "--device", "cpu")


@pytest.fixture
def klein(klein: Any, random_snapshot: str) -> Any:
    """Run `klein generate` here on the random model -> (exit code, stdout, stderr)."""
    return partial(klein, "generate", "-m", random_snapshot, *QUICK)


def recipe_in(path: str) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.text["klein"])["recipe"]  # type: ignore[no-any-return]


def test_a_prompt_becomes_a_picture_whose_path_is_all_of_stdout(klein: Any) -> None:
    code, out, err = klein("a red circle", "-s", "5")
    assert (code, out, err) == (0, "a-red-circle-5.png\n", "")
    with Image.open("a-red-circle-5.png") as image:
        assert image.size == (64, 64)
    assert recipe_in("a-red-circle-5.png") == {
        "prompt": "a red circle",
        "negative_prompt": None,
        "seed": 5,
        "width": 64,
        "height": 64,
        "steps": 1,
        "guidance": 1.0,
        "model": "small",
    }


def test_a_drawn_seed_is_printed_and_makes_the_same_picture_again(klein: Any) -> None:
    code, _, err = klein("a cat", "-o", "one.png")
    found = re.fullmatch(r"seed: (\d+)\n", err)
    assert code == 0
    assert found is not None
    assert recipe_in("one.png")["seed"] == int(found[1])
    klein("a cat", "-o", "two.png", "-s", found[1])
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()


def test_a_seed_that_draws_the_noise_of_another_is_told(klein: Any) -> None:
    _, out, err = klein("a cat", "--seeds", f"1,{2**32 + 1}", "-o", "d/")
    assert f"seed {2**32 + 1} draws the noise of seed 1: torch's generator on the CPU" in err
    one, other = (Image.open(path).tobytes() for path in out.split())
    assert one == other
    assert klein("a cat", "-s", str(2**32 - 1), "-o", "e/")[2] == ""


def test_two_drawn_seeds_differ(klein: Any) -> None:
    assert klein("a cat", "--dry-run")[2] != klein("a cat", "--dry-run")[2]


def test_a_prompts_file_fills_a_folder(klein: Any) -> None:
    Path("p.jsonl").write_text(
        '{"prompt": "a cat", "width": 80}\n'
        '{"prompt": "a dog", "output": "dog.jpg", "seed": 77, "n": 2}\n'
        '{"prompt": "a cow"}\n'
    )
    code, out, _ = klein("--prompts-file", "p.jsonl", "-o", "d/", "-s", "10", "--batch-size", "2")
    assert code == 0
    names = ["0001-a-cat-10.png", "0004-a-cow-13.png", "dog-0001.jpg", "dog-0002.jpg"]
    assert sorted(os.listdir("d")) == [*names, "manifest.jsonl"]
    assert sorted(out.split()) == [f"d/{name}" for name in names]
    with Image.open("d/0001-a-cat-10.png") as image:
        assert image.size == (80, 64)


def test_json_events_tell_the_run(klein: Any) -> None:
    code, out, err = klein("a cat", "-n", "2", "-s", "5", "--json", "-o", "d/")
    events = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [event["event"] for event in events] == ["started", "picture", "picture", "finished"]
    assert (events[0]["pictures"], events[0]["seed"]) == (2, 5)
    assert events[2]["path"] == "d/0002-a-cat-6.png"
    assert Path(events[2]["path"]).is_file()
    assert (events[3]["made"], events[3]["failed"]) == (2, 0)


def test_quiet_prints_the_path_alone(klein: Any) -> None:
    code, out, err = klein("a cat", "-q", "-o", "cat.png")
    assert (code, out, err) == (0, "cat.png\n", "")


def test_verbose_says_what_was_chosen_and_where_the_time_went(klein: Any) -> None:
    _, _, err = klein("a cat", "-v")
    (skipped,) = re.findall(r"^not read unless something needs them: (.*)$", err, re.MULTILINE)
    assert {"layers 27 to 29", "model.norm.weight"} <= set(skipped.split(", "))
    assert "on cpu, float32" in err
    for phase in ("load", "encode", "denoise", "decode", "in all"):
        assert re.search(rf"^ *{phase} +\d+\.\d\d s$", err, re.MULTILINE), phase


def test_an_existing_file_stays_and_the_model_is_not_loaded(klein: Any) -> None:
    Path("cat.png").write_bytes(b"mine")
    code, out, err = klein("a cat", "-o", "cat.png", "-v")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: cat.png already exists",
        "hint: -y replaces it; or give another name",
    ]
    assert Path("cat.png").read_bytes() == b"mine"


def test_overwrite_replaces_it(klein: Any) -> None:
    Path("cat.png").write_bytes(b"mine")
    assert klein("a cat", "-o", "cat.png", "-y")[0] == 0
    assert recipe_in("cat.png")["prompt"] == "a cat"


def test_options_without_effect_are_warned_of_once(klein: Any) -> None:
    Path("p.jsonl").write_text('{"prompt": "a", "guidance": 2}\n{"prompt": "b", "guidance": 3}\n')
    _, _, err = klein("--prompts-file", "p.jsonl", "--negative-prompt", "x", "--dry-run", "-q")
    assert err.splitlines() == [
        "warning: --negative-prompt and guidance have no effect: small is distilled"
    ]
    _, _, err = klein("a", "--cfg-scale", "2", "--dry-run", "-q")
    assert err.splitlines() == ["warning: --guidance has no effect: small is distilled"]


def test_dry_run_prints_the_plan_and_writes_nothing(klein: Any) -> None:
    code, out, _ = klein("a cat", "-n", "2", "-s", "5", "-o", "d/", "--dry-run")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("d/0001-a-cat-5.png  seed 5  64x64  1 step  ")
    assert re.search(r"  \d+ tokens  \"a cat\"$", lines[1])
    assert os.listdir() == []


@pytest.mark.process
def test_dry_run_needs_no_torch(random_snapshot: str) -> None:
    probe = (
        "import sys; from klein_cli.cli.app import main; code = main(sys.argv[1:]);"
        "print([name for name in ('torch', 'numpy') if name in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, "generate", "a", "-m", random_snapshot, "--dry-run", "-q"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_strict_names_every_prompt_that_is_too_long(klein: Any) -> None:
    Path("p.txt").write_text("a cat\n" + "dog " * 600 + "\n" + "cow " * 600 + "\n")
    code, _, err = klein("--prompts-file", "p.txt", "--strict", "-o", "d/", "-s", "1")
    assert code == 2
    assert "image 2" in err
    assert "image 3" in err


def test_a_prompt_that_is_cut_is_warned_of_and_with_strict_refused(klein: Any) -> None:
    long = "cat and dog " * 400 + "the very end"
    code, _, err = klein(long, "-s", "1", "--dry-run")
    assert code == 0
    assert err.startswith("warning: the prompt is ")
    code, out, err = klein(long, "-s", "1", "--strict", "-o", "cat.png")
    assert (code, out) == (2, "")
    assert err.startswith("error: the prompt is ")
    assert "--strict" in err.splitlines()[1]
    assert os.listdir() == []


def test_many_prompts_that_are_cut_are_summed_up(klein: Any) -> None:
    lines = [f"{number} " + "cat and dog " * 400 for number in range(8)]
    Path("p.txt").write_text("\n".join(lines))
    _, _, err = klein("--prompts-file", "p.txt", "-q", "--dry-run")
    warnings = err.splitlines()
    assert len(warnings) == 6
    assert warnings[0].startswith("warning: image 1: ")
    assert warnings[5] == "warning: 3 more prompts are too long"


@pytest.mark.process
def test_a_picture_on_stdout(random_snapshot: str) -> None:
    arguments = ["generate", "a cat", "-m", random_snapshot, *QUICK, "-o", "-", "-s", "5"]
    done = subprocess.run([sys.executable, "-m", "klein_cli", *arguments], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    Path("cat.png").write_bytes(done.stdout)
    assert recipe_in("cat.png")["seed"] == 5
    assert done.stdout.endswith(b"IEND\xaeB`\x82")


@pytest.mark.process
def test_a_prompt_from_standard_input(random_snapshot: str) -> None:
    arguments = ["generate", "-", "-m", random_snapshot, "--dry-run", "-s", "5"]
    done = subprocess.run(
        [sys.executable, "-m", "klein_cli", *arguments], input=b" two\nlines\n", capture_output=True
    )
    assert done.returncode == 0
    assert done.stdout.decode().endswith('tokens  " two\\nlines"\n')


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name != "posix", reason="needs signals")
def test_an_interrupt_keeps_what_was_made_and_leaves_no_half_file(random_snapshot: str) -> None:
    arguments = ["generate", "a", "-m", random_snapshot, *QUICK, "-n", "5000", "-o", "d/"]
    running = subprocess.Popen(
        [sys.executable, "-m", "klein_cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    first = running.stdout.readline().strip()
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert re.search(r"interrupted: \d+ of 5000 images made", err)
    assert "Traceback" not in err
    printed = {first, *out.split()}
    on_disk = {f"d/{name}" for name in os.listdir("d") if name != "manifest.jsonl"}
    assert printed <= on_disk
    assert len(on_disk - printed) <= 1
    assert all(recipe_in(path) for path in on_disk)


def test_an_interrupt_before_the_first_picture_is_an_event_too(
    klein: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("klein_cli.cli.generation.start", interrupted)
    code, out, _ = klein("a", "--json")
    assert code == 130
    assert json.loads(out.splitlines()[-1]) == {"event": "interrupted", "made": 0, "wanted": None}


def test_a_bare_file_needs_no_room_for_its_recipe(klein: Any) -> None:
    words = "\u00e9" * 40_000
    assert klein(words, "-o", "long.jpg")[0] == 2
    assert klein(words, "-o", "long.jpg", "--no-metadata", "-q")[0] == 0


def test_the_plan_of_a_picture_for_standard_output_is_shown(klein: Any) -> None:
    code, out, _ = klein("a cat", "-s", "5", "-o", "-", "--dry-run")
    assert (code, out.startswith("-  seed 5  64x64")) == (0, True)


def test_without_a_gpu_the_default_model_offers_tiny(capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["generate", "a cat", "-s", "1"]) == 3
    said = capfd.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 2
    assert "--model tiny" in said.err
    assert os.listdir() == []
