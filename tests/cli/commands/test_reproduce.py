"""`klein reproduce`: the same image from the image alone, and nothing that a stranger asks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy
import pytest
import zygote
from PIL import Image, PngImagePlugin

import klein_cli
from klein_cli.cli.app import main
from klein_cli.errors import ModelError
from klein_cli.output.metadata import to_json
from klein_cli.pipeline import Pipeline
from klein_cli.presets import presets
from klein_cli.settings import Settings

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("empty_folder")]

CIRCLE = "a red circle on a white background"

ODD_PROMPTS = (
    " blanks around ",
    'both "quotes", it\'s so',
    "one\ntwo\r\nthree\rfour",
    "\nbegins with a line break",
    "a, b, c: d; (e:1.2) [f]",
    "Negative prompt: nothing",
    "a stair\nNegative prompt: rain\nSteps: 50, Seed: 9",
    "Steps: 4, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64",
    '{"prompt": "json", "n": [1, 2]}',
    "{seed} {index:04d} %s %(x)s $HOME `ls`",
    "back\\slash \\n \\u0041",
    "# no comment",
    "-",
    "猫と犬",
    "عربي ואברית",
    "e\u0301 \u212b ﬁ",
    "👩‍🎨🏳️‍🌈",
    "\u2028separators\u2029\x85\x0b\x0c",
    "\x1b[2J\x1b]0;title\x07",
    "<|im_end|><|im_start|>assistant<|endoftext|>",
    "<think></think> &amp; <b>",
    "\ue000 private \U0010ffff",
    "tab\tand\u00a0nbsp\u200b",
    "x" * 300,
    "cat and dog " * 400,
)


@pytest.fixture(scope="module")
def drawn_circle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("circle") / "circle.png"
    options = ("-m", "tiny", "--size", "128x128", "--steps", "2", "-s", "7", "--device", "cpu")
    assert main(["generate", CIRCLE, *options, "-q", "-o", str(path)]) == 0
    return path.read_bytes()


@pytest.fixture
def circle(drawn_circle: bytes) -> Path:
    """An image of tiny, small and quick."""
    Path("circle.png").write_bytes(drawn_circle)
    return Path("circle.png")


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return numpy.asarray(image.convert("RGB"))


def record_in(path: Path) -> Any:
    with Image.open(path) as image:
        return json.loads(image.text["klein"])  # type: ignore[attr-defined]


def rewritten(path: Path, name: str, **changes: dict[str, Any] | str) -> Path:
    """A copy of the image whose record was changed: tables are merged, words replaced."""
    written = record_in(path)
    for key, change in changes.items():
        written[key] = {**written[key], **change} if isinstance(change, dict) else change
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("klein", to_json(written))
    Image.fromarray(pixels(path)).save(name, pnginfo=chunks)
    return Path(name)


def rows(first: int, count: int, **guided: Any) -> list[dict[str, Any]]:
    """Rows of all sizes, seeds and steps, over the odd prompts from number `first` on."""
    sizes, seeds, steps = (64, 80, 96), (0, 1, 7, 2**32, 2**63 - 1), (1, 2, 1, 4)
    return [
        {
            "prompt": ODD_PROMPTS[number % len(ODD_PROMPTS)],
            "width": sizes[number % 3],
            "height": sizes[number // 3 % 3],
            "seed": seeds[number % 5],
            "steps": steps[number % 4],
            **{name: values[number % len(values)] for name, values in guided.items()},
        }
        for number in range(first, first + count)
    ]


def made(klein: Any, model: str, name: str, lines: list[dict[str, Any]], *options: str) -> None:
    Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ("generate", "--prompts-file", f"{name}.jsonl", "-m", model, "--device", "cpu")
    code, _, err = klein(*arguments, "-q", "-o", f"{name}/", *options)
    assert code == 0, err


def drawn_again(klein: Any, *options: str) -> None:
    """Draw all images of the present folder again, and hold each pair together."""
    originals = sorted(Path().glob("*/*.png"))
    again = Path("..", f"{Path.cwd().name}-again")
    code, out, err = klein("reproduce", *originals, "-o", f"{again}/", "--json", *options)
    assert code == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    drawn = sorted(again.iterdir())
    assert len(drawn) == len(originals)
    for number, (original, copy) in enumerate(zip(originals, drawn, strict=True)):
        assert numpy.array_equal(pixels(original), pixels(copy)), record_in(original)["recipe"]
        before, after = record_in(original), record_in(copy)
        assert before == after, number
    compared = [event for event in events if event["event"] == "compared"]
    assert [event["same"] for event in compared] == [True] * len(originals)
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert all("tokens long" in warning for warning in warnings), warnings


def test_38_recipes_of_a_distilled_model_round_trip(klein: Any, small_snapshot: Path) -> None:
    """Every engine, attention and precision that a CPU has, over odd prompts, seeds and sizes."""
    # Few where a CPU is slow, and each of the twelve ways at least once.
    counts = {"float32": (8, 1), "bfloat16": (6, 1), "float16": (2, 1)}
    first = 0
    for engine, (dtype, rows_by_attention) in product(("native", "diffusers"), counts.items()):
        for attention, count in zip(("sdpa", "eager"), rows_by_attention, strict=True):
            options = ("--engine", engine, "--attention", attention, "--dtype", dtype)
            made(klein, str(small_snapshot), f"{first:02d}", rows(first, count), *options)
            first += count
    assert first == 38
    drawn_again(klein, "-m", str(small_snapshot))


def test_12_recipes_of_a_base_model_round_trip(klein: Any, small_base_snapshot: Path) -> None:
    """Guidance and negative prompts count."""
    guided = {
        "guidance": (4.0, 1.0, 0.0, 7.3, 1.0000001),
        "negative_prompt": (None, "", " ", "rain, snow\nNegative prompt: fog", "猫"),
    }
    for number, (engine, dtype) in enumerate(
        product(("native", "diffusers"), ("float32", "bfloat16"))
    ):
        lines = rows(3 * number + 10, 3, **guided)
        options = ("--engine", engine, "--dtype", dtype, "--batch-size", "3")
        made(klein, str(small_base_snapshot), f"{number:02d}", lines, *options)
    drawn_again(klein, "-m", str(small_base_snapshot))


def test_4_recipes_of_tiny_round_trip_by_its_name(klein: Any) -> None:
    lines = [{**row, "width": 128, "height": 144} for row in rows(1, 4)]
    made(klein, "tiny", "tiny", lines)
    drawn_again(klein)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_the_commands_themselves_round_trip(extension: str) -> None:
    """As processes, with all that a user's shell does; a JPEG's recipe gives back the pixels."""

    def run(*arguments: str) -> str:
        done = zygote.shared().run(arguments)
        assert done.returncode == 0
        return done.stderr

    prompt = 'a "red" circle,\nround'
    common = ("generate", prompt, "-m", "tiny", "--size", "128x128", "-s", "5", "--device", "cpu")
    run(*common, "-o", f"one.{extension}")
    said = run("reproduce", f"one.{extension}", "-o", "again.png")
    run(*common, "-o", "plain.png")
    assert numpy.array_equal(pixels(Path("again.png")), pixels(Path("plain.png")))
    lossless = "again.png is one.png again, pixel for pixel\n"
    lossy = f"not compared: one.{extension} is lossy\n"
    assert said == (lossless if extension == "png" else lossy)


def test_an_original_that_cannot_be_decoded_is_told_of(klein: Any, circle: Path) -> None:
    Path("torn.png").write_bytes(circle.read_bytes()[:-600])
    code, _, err = klein("reproduce", "torn.png", "-o", "again.png")
    assert code == 0
    assert err.startswith("warning: not compared: cannot read torn.png: image file is truncated")
    assert numpy.array_equal(pixels(Path("again.png")), pixels(circle))


def test_it_says_so_when_it_is_the_same_again(klein: Any, circle: Path) -> None:
    code, out, err = klein("reproduce", circle)
    assert (code, out) == (0, "a-red-circle-on-a-white-background-7.png\n")
    assert err == "a-red-circle-on-a-white-background-7.png is circle.png again, pixel for pixel\n"
    code, _, err = klein("reproduce", circle, out.strip(), "-o", "both/", "-v")
    assert "both/0002-a-red-circle-on-a-white-background-7.png is a-red" in err
    assert "2 of 2 images are the same again, pixel for pixel\n" in err
    assert klein("reproduce", circle, "-q", "-o", "quiet.png")[1:] == ("quiet.png\n", "")


def test_it_says_so_when_it_is_not(klein: Any, circle: Path) -> None:
    changed = pixels(circle).copy()
    changed[3, 4] ^= 3
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("klein", to_json(record_in(circle)))
    Image.fromarray(changed).save("changed.png", pnginfo=chunks)
    Image.fromarray(changed[:50]).save("cut.png", pnginfo=chunks)
    code, _, err = klein("reproduce", "changed.png", "-o", "again.png")
    assert code == 0
    assert err == (
        "warning: again.png is not quite changed.png: 1 of 16384 pixels differ, "
        "by at most 3 of 255\n"
    )
    _, _, err = klein("reproduce", "cut.png", "-o", "again.png", "-y")
    assert err == "warning: cut.png has been resized since it was drawn\n"


def test_what_is_not_as_then_is_warned_of_line_by_line(klein: Any, circle: Path) -> None:
    other = rewritten(
        circle,
        "other.png",
        provenance={"torch": "1.0", "python": "2.7", "diffusers": "0.1", "threads": "1000000"},
        model={"weights": "ab" * 16},
        settings={"tiles": 4},
        step_down="made alone:\n\x1b[31mno memory",
        sigmas=[1.0, 0.25, 0.0],
    )
    code, _, err = klein("reproduce", other, "-o", "again.png")
    assert code == 0
    assert err.splitlines() == [
        "warning: it says settings.tiles, which this klein does not know",
        "warning: it was made with less memory than it needed: made alone:\\n\\x1b[31mno memory",
        "warning: model: other weights than those of tiny here",
        f"warning: torch: 1.0 then, {record_in(circle)['provenance']['torch']} here",
        f"warning: threads: 1000000 then, {record_in(circle)['provenance']['threads']} here",
        "warning: sigmas: other noise levels then",
        "again.png is other.png again, pixel for pixel",
    ]
    _, _, err = klein("reproduce", other, "-s", "8", "-o", "variation.png")
    assert err == "", "of a variation nobody expects the same pixels"
    _, _, err = klein("reproduce", other, circle, "-o", "both/")
    assert f"warning: {other}: model: other weights than those of tiny here\n" in err


def test_a_picture_of_another_machine_is_drawn_as_well_as_here_can(
    klein: Any, circle: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    settings = {
        "device": "cuda:3",
        "attention": "flash-attn",
        "dtype": "float16",
        "kernels": "triton",
    }
    gpu = rewritten(circle, "gpu.png", settings=settings, provenance={"cuda": "13.0"})
    code, _, err = klein("reproduce", gpu, "-o", "again.png")
    assert code == 0
    assert "warning: device: cuda then, and there is no GPU here\n" in err
    assert "warning: attention: flash-attn then, sdpa here\n" in err
    assert "warning: kernels: triton then, torch here\n" in err
    assert "cuda:" not in err, "its version says nothing on a CPU"
    assert record_in(Path("again.png"))["settings"]["dtype"] == "float16"
    noise = rewritten(circle, "noise.png", settings={"device": "cuda", "rng": "cuda"})
    code, _, err = klein("reproduce", noise, "-o", "noise-again.png")
    assert code == 2
    assert err.startswith("error: the image's noise came from a GPU")
    assert "--rng cpu" in err
    assert klein("reproduce", noise, "--rng", "cpu", "-o", "noise-again.png")[0] == 0


def test_it_is_drawn_with_as_many_threads_as_then(klein: Any, circle: Path) -> None:
    """Of 196,608 pixel values about ten depend on it."""
    import torch

    before = torch.get_num_threads()
    then = 1 if before > 1 else 2
    other = rewritten(circle, "other.png", provenance={"threads": str(then)})
    _, _, err = klein("reproduce", other, "-o", "again.png")
    assert "threads" not in err
    assert record_in(Path("again.png"))["provenance"]["threads"] == str(then)
    assert torch.get_num_threads() == before


def test_overrides_make_variations(klein: Any, circle: Path) -> None:
    code, out, _ = klein(
        *("reproduce", circle, "-p", "a blue star", "-s", "3", "-n", "2", "--steps", "1"),
        *("-W", "144", "--dtype", "bfloat16", "--engine", "diffusers", "-o", "v/"),
    )
    assert code == 0
    first, second = (record_in(Path(line)) for line in out.splitlines())
    assert first["recipe"] == record_in(circle)["recipe"] | {
        "prompt": "a blue star",
        "seed": 3,
        "width": 144,
        "steps": 1,
    }
    assert second["recipe"]["seed"] == 4
    assert (first["settings"]["dtype"], first["settings"]["engine"]) == ("bfloat16", "diffusers")
    _, out, _ = klein("reproduce", circle, "--aspect", "2:1", "--dry-run")
    assert "  192x96  " not in out, "tiny makes nothing below 128"
    _, out, _ = klein("reproduce", circle, "--size", "128x256", "--dry-run")
    assert "  seed 7  128x256  2 steps  " in out


def test_a_model_of_the_other_kind_keeps_its_own_steps(
    klein: Any, circle: Path, small_base_snapshot: Path
) -> None:
    code, _, err = klein(
        *("reproduce", circle, "-m", small_base_snapshot, "--negative-prompt", "rain"),
        *("--size", "64x64", "--dry-run", "--json"),
    )
    assert (code, err) == (0, "1 image to make\n")
    _, out, _ = klein("reproduce", circle, "-m", small_base_snapshot, "--dry-run")
    assert "  50 steps  " in out
    _, out, _ = klein("reproduce", circle, "-m", small_base_snapshot, "--steps", "3", "--dry-run")
    assert "  3 steps  " in out


def test_without_effect_is_said_here_too(klein: Any, circle: Path) -> None:
    _, _, err = klein("reproduce", circle, "-g", "3", "--negative-prompt", "x", "--dry-run")
    assert err.splitlines()[:2] == [
        "warning: --guidance has no effect: tiny is distilled",
        "warning: --negative-prompt has no effect: tiny is distilled",
    ]


def test_all_pictures_that_cannot_be_used_are_named_and_none_is_made(
    klein: Any, circle: Path
) -> None:
    Image.new("RGB", (16, 16)).save("plain.png")
    Path("words.png").write_text("words")
    code, out, err = klein("reproduce", circle, "plain.png", "words.png", "-o", "d/")
    assert (code, out) == (2, "")
    assert err.splitlines()[:3] == [
        "error: 2 of 3 images cannot be used",
        "  plain.png holds no recipe",
        "  words.png is not an image",
    ]
    assert not Path("d").exists()
    assert klein("reproduce", "plain.png")[0] == 2


def test_faults_of_one_kind_keep_their_exit_code(klein: Any, circle: Path) -> None:
    for name in ("a.png", "b.png"):
        rewritten(circle, name, recipe={"model": "klein-4b"})
    assert klein("reproduce", "a.png", "-o", "d/")[0] == 3
    assert klein("reproduce", "a.png", "b.png", "-o", "d/")[0] == 3


@pytest.mark.parametrize("late", [False, True])
def test_a_model_that_fails_does_not_keep_others_from_drawing(
    klein: Any, circle: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Be it at once, or when its weights arrive beside the first image."""
    rewritten(circle, "other.png", settings={"dtype": "bfloat16"})
    load = Pipeline.load

    def broken(*_: object, **__: object) -> Any:
        raise ModelError("it is broken", "fix it")

    def fails(snapshot: Any, settings: Settings, **options: Any) -> Pipeline:
        if settings.dtype == "bfloat16" and not late:
            broken()
        pipeline = load(snapshot, settings, **options)
        if settings.dtype == "bfloat16":
            monkeypatch.setattr(pipeline, "render", broken)
        return pipeline

    monkeypatch.setattr(Pipeline, "load", fails)
    code, out, err = klein("reproduce", "other.png", circle, "-o", "d/")
    assert (code, out) == (1, "d/0002-a-red-circle-on-a-white-background-7.png\n")
    assert "error: image 1: it is broken\nhint: fix it\n" in err
    assert err.endswith("1 of 2 images made, 1 failed\n")
    assert klein("reproduce", "other.png")[0] == 3


def test_a_disk_that_refuses_is_told_of_once(
    klein: Any, circle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewritten(circle, "other.png", settings={"dtype": "bfloat16"})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("klein_cli.run.runner.save", full)
    code, _, err = klein("reproduce", "other.png", circle, "-o", "d/")
    assert (code, err.count("No space left")) == (1, 1)


def test_a_settings_file_says_how_to_work_and_not_what_to_draw(klein: Any, circle: Path) -> None:
    Path("c.toml").write_text(
        'num-images = 4\nsteps = 30\nmodel = "klein-4b"\ndtype = "bfloat16"\noutput = "d/"\n'
    )
    code, out, err = klein("reproduce", circle, "--config", "c.toml", "-v")
    assert (code, len(out.splitlines())) == (0, 1)
    assert "from c.toml: output d/\n" in err
    assert record_in(Path(out.strip()))["recipe"] == record_in(circle)["recipe"]


def test_a_dry_run_is_that_of_generate(klein: Any, circle: Path) -> None:
    code, out, err = klein("reproduce", circle, "-n", "2", "-m", "tiny", "--dry-run", "--json")
    *pictures, whole = map(json.loads, out.splitlines())
    assert [picture["tokens"] for picture in pictures] == [7, 7]
    assert (whole["event"], whole["pictures"]) == ("plan", 2)
    assert klein("reproduce", circle, "-o", "-", "--dry-run")[1].startswith("-  seed 7  128x128")
    code, _, err = klein("reproduce", circle, "-p", "cat " * 600, "--strict", "--dry-run")
    assert (code, "leave out --strict" in err) == (2, True)


def test_standard_output_takes_one_picture(klein: Any, circle: Path) -> None:
    command = [sys.executable, "-m", "klein_cli", "reproduce", str(circle), "-o", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    Path("again.png").write_bytes(done.stdout)
    assert numpy.array_equal(pixels(Path("again.png")), pixels(circle))
    code, _, err = klein("reproduce", circle, "-n", "2", "-o", "-")
    assert (code, "give a folder" in err) == (2, True)


def test_no_metadata_leaves_the_same_pixels_and_not_a_word(klein: Any, circle: Path) -> None:
    for extension in ("png", "jpg", "webp"):
        name = f"bare.{extension}"
        assert klein("reproduce", circle, "--no-metadata", "-o", name)[0] == 0
        with Image.open(name) as image:
            assert not {"klein", "parameters", "exif", "comment"} & set(image.info)
            assert not image.getexif()
        data = Path(name).read_bytes()
        assert CIRCLE.encode() not in data
        assert b"klein" not in data
    assert numpy.array_equal(pixels(Path("bare.png")), pixels(circle))
    long = ("reproduce", circle, "-p", "\u00e9" * 40_000, "-o", "long.jpg")
    assert klein(*long)[0] == 2
    assert klein(*long, "--no-metadata")[0] == 0, "what is not written needs no room"


# What a stranger's picture must not bring about.


@pytest.mark.parametrize(
    ("model", "repo", "hint"),
    [
        ("evil/model", "evil/model", "if you trust it: -m evil/model"),
        ("models", None, "say where it is: -m FOLDER"),
        ("./models", None, "-m FOLDER"),
        ("/etc", None, "-m FOLDER"),
        ("../../models", None, "-m FOLDER"),
    ],
)
def test_a_model_that_a_picture_names_is_not_fetched_and_no_folder_opened(
    klein: Any, circle: Path, small_snapshot: Path, model: str, repo: str | None, hint: str
) -> None:
    """A whole model lies where the image points, and the network may not be touched."""
    shutil.copytree(small_snapshot, "models")
    stranger = rewritten(
        circle, "stranger.png", recipe={"model": model}, model={"name": model, "repo": repo}
    )
    script = (
        "import socket, sys\n"
        "def refuse(*_): raise SystemExit(99)\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from klein_cli.cli.app import main\n"
        "code = main(sys.argv[1:])\n"
        "assert not {'torch', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", script, "reproduce", str(stranger), "-o", "again.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert hint in done.stderr
    assert not Path("again.png").exists()
    code, _, err = klein("reproduce", stranger, "-m", "models", "-o", "again.png")
    assert code == 0
    assert "warning: model: other weights than those of models here\n" in err


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_snapshot: Path) -> Path:
    """A hub cache that holds a small model under klein-4b's name, at two commits; no network."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    repo = cache / ("models--" + presets()["klein-4b"].repo.replace("/", "--"))
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(small_snapshot, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    return repo


def test_a_preset_is_used_from_this_machine_at_the_commit_of_the_picture(
    klein: Any, circle: Path, hub_cache: Path
) -> None:
    for commit, used in [("b" * 40, "b" * 40), ("a" * 40, "a" * 40), ("c" * 40, "a" * 40)]:
        picture = rewritten(
            circle,
            "4b.png",
            recipe={"model": "klein-4b", "width": 64, "height": 64, "steps": 1},
            model={"name": "klein-4b", "revision": commit, "weights": None},
            sigmas=[],
        )
        code, _, err = klein("reproduce", picture, "-o", "again.png", "-y")
        assert code == 0
        assert record_in(Path("again.png"))["model"]["revision"] == used
        assert record_in(Path("again.png"))["model"]["repo"] == presets()["klein-4b"].repo
        warned = f"model: revision {commit} then, {used} here" in err
        assert warned == (commit != used)


def test_a_preset_that_is_not_here_is_not_downloaded(
    klein: Any, circle: Path, hub_cache: Path
) -> None:
    shutil.rmtree(hub_cache)
    picture = rewritten(circle, "4b.png", recipe={"model": "klein-4b"})
    code, _, err = klein("reproduce", picture, "-o", "again.png")
    assert code == 3
    assert err.splitlines() == [
        "error: 4b.png was made with klein-4b, which is not on this machine",
        "hint: -m klein-4b downloads it; -m tiny draws another image with what is here",
    ]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"settings": {"device": "cpu; rm -rf /"}}, "--device cpu; rm -rf / is not valid"),
        ({"settings": {"device": "npu"}}, "--device npu is not valid"),
        ({"settings": {"engine": "\x1b[2J"}}, "--engine \\x1b[2J is not valid"),
        ({"settings": {"dtype": "__class__"}}, "--dtype __class__ is not valid"),
        ({"settings": {"rng": "../rng"}}, "--rng ../rng is not valid"),
        ({"recipe": {"width": 4096, "height": 4096}}, "out of range for tiny"),
    ],
)
def test_words_that_mean_nothing_here_are_refused(
    klein: Any, circle: Path, changes: dict[str, Any], complaint: str
) -> None:
    code, _, err = klein("reproduce", rewritten(circle, "odd.png", **changes), "-o", "again.png")
    assert code == 2
    assert complaint in err
    assert "\x1b" not in err
    assert not Path("again.png").exists()


def test_a_picture_of_the_first_format_is_drawn_again(klein: Any, circle: Path) -> None:
    written = record_in(circle)
    del written["sigmas"], written["model"]["weights"], written["model"]["repo"]
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("klein", json.dumps(written | {"format": 1}))
    Image.fromarray(pixels(circle)).save("old.png", pnginfo=chunks)
    _, _, err = klein("reproduce", "old.png", "-o", "again.png")
    assert err == "again.png is old.png again, pixel for pixel\n"
    assert record_in(Path("again.png")) == record_in(circle)


def test_everything_is_refused_before_torch(circle: Path) -> None:
    script = (
        "import sys; from klein_cli.cli.app import main; code = main(sys.argv[1:]);"
        "print(sorted({'torch', 'numpy', 'diffusers'} & set(sys.modules))); sys.exit(code)"
    )
    for arguments, code in {
        ("reproduce", "--help"): 0,
        ("reproduce", "nowhere.png"): 2,
        ("reproduce", str(circle), "--size", "1x1"): 2,
        ("reproduce", str(circle), "-m", "tinny"): 3,
        ("reproduce", str(circle), "-o", str(circle)): 2,
        ("reproduce", str(circle), "--batch-size", "x"): 2,
        ("reproduce", str(circle), "--dtype", "float"): 2,
        ("reproduce", str(circle), "--dry-run"): 0,
    }.items():
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (code, "[]"), arguments


def test_the_package_is_the_one_under_test() -> None:
    assert Path(klein_cli.__file__).is_relative_to(Path(__file__).parents[3]), os.getcwd()
