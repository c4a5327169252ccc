"""--lora and `lora` in rows: found, checked, drawn, recorded and drawn again, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fixtures.adapters import write, write_for_tiny

Klein = Callable[..., tuple[int, str, str]]
SIZE = ("--size", "128x128", "--steps", "1", "--device", "cpu")

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture(autouse=True)
def adapters(empty_folder: Path) -> None:
    (empty_folder / "loras").mkdir()
    write_for_tiny(empty_folder / "a.safetensors", 1)
    write_for_tiny(empty_folder / "loras" / "b.safetensors", 2)


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def record_in(path: str) -> dict[str, Any]:
    with Image.open(path) as image:
        found: dict[str, Any] = json.loads(image.info["klein"])
    return found


def adapters_in(path: str) -> list[tuple[str, float]]:
    given = record_in(path)["recipe"].get("adapters", [])
    return [(each["name"], each["weight"]) for each in given]


def test_two_adapters_and_none(klein: Klein) -> None:
    """A weight of 0 is the model itself, and is recorded; words alone keep their format."""
    for name, options in {
        "none": (),
        "both": ("--lora", "a.safetensors=0.5", "--lora", "loras/b.safetensors"),
        "zero": ("--lora", "a.safetensors=0"),
    }.items():
        code, out, err = klein("generate", "a circle", "-m", "tiny", "-s", "3", *SIZE, "-o",
                               f"{name}.png", *options)  # fmt: skip
        assert (code, out) == (0, f"{name}.png\n"), err
    assert "a.safetensors: LoRA of rank 2, " in err
    assert " of 49 layers\n" in err
    assert np.array_equal(pixels("zero.png"), pixels("none.png"))
    assert not np.array_equal(pixels("both.png"), pixels("none.png"))
    assert adapters_in("both.png") == [("a.safetensors", 0.5), ("b.safetensors", 1.0)]
    assert adapters_in("zero.png") == [("a.safetensors", 0.0)]
    assert [record_in(f"{name}.png")["format"] for name in ("none", "both")] == [2, 3]


def test_rows_with_adapters_of_their_own(klein: Klein, empty_folder: Path) -> None:
    """From where the file lies, beside those of --lora; what a row says of one of these counts. A
    row is known by what is in the files: renamed ones are not made again, and others are.
    """
    rows = [
        {"prompt": "a circle", "seed": 1, "output": "0.png"},
        {"prompt": "a circle", "seed": 1, "output": "1.png", "lora": "b.safetensors=0.5"},
        {"prompt": "a circle", "seed": 1, "output": "2.png", "lora": ["../a.safetensors=0.25"]},
        {"prompt": "a circle", "seed": 1, "output": "3.png", "lora": []},
    ]
    file = empty_folder / "loras" / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("generate", "--prompts-file", file, "-m", "tiny", *SIZE, "-o", "out/")
    code, _, err = klein(*command, "--lora", "a.safetensors")
    assert code == 0, err
    assert [adapters_in(f"out/{number}.png") for number in range(4)] == [
        [("a.safetensors", 1.0)],
        [("a.safetensors", 1.0), ("b.safetensors", 0.5)],
        [("a.safetensors", 0.25)],
        [("a.safetensors", 1.0)],
    ]
    assert len({pixels(f"out/{number}.png").tobytes() for number in range(4)}) == 3
    (empty_folder / "a.safetensors").rename(empty_folder / "renamed.safetensors")
    file.write_text(file.read_text().replace("../a.", "../renamed."))
    code, _, err = klein(*command, "--lora", "renamed.safetensors", "--resume")
    assert "4 of 4 images are there" in err, err
    write_for_tiny(empty_folder / "loras" / "b.safetensors", 9)
    code, out, err = klein(*command, "--lora", "renamed.safetensors", "--resume")
    assert (code, len(out.splitlines())) == (0, 1), err


def test_a_csv_has_several_in_a_cell(klein: Klein, empty_folder: Path) -> None:
    (empty_folder / "rows.csv").write_text(
        "prompt,seed,lora\na circle,1,a.safetensors=0.5; loras/b.safetensors\na circle,2,\n"
    )
    code, out, err = klein(
        "generate", "--prompts-file", "rows.csv", "-m", "tiny", *SIZE, "-o", "o/"
    )
    assert code == 0, err
    first, second = sorted(out.splitlines())
    assert adapters_in(first) == [("a.safetensors", 0.5), ("b.safetensors", 1.0)]
    assert adapters_in(second) == []


REFUSED = {
    "no file": (("--lora", "c.safetensors"), 2, "there is no adapter c.safetensors"),
    "no number": (("--lora", "a.safetensors=much"), 2, "there is no adapter a.safetensors=much"),
    "an endless weight": (("--lora", "a.safetensors=inf"), 2, "the weight of a.safetensors is inf"),
    "a huge weight": (("--lora", "a.safetensors=1000"), 2, "adapter's weight of 1000.0 is out of"),
    "nothing": (("--lora", "=0.5"), 2, "names no file"),
    "a pickle": (("--lora", "p.pt"), 2, "p.pt is pickled, which klein never opens"),
    "several": (("--lora", "loras"), 2, "loras holds 2 files: b.safetensors, w.safetensors"),
    "another size": (("--lora", "loras/w.safetensors"), 3, "and in tiny"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_before_anything_is_drawn(
    klein: Klein, empty_folder: Path, name: str
) -> None:
    """By a dry run too, which draws nothing."""
    options, wanted, words = REFUSED[name]
    (empty_folder / "p.pt").write_bytes(b"\x80")
    write_for_tiny(empty_folder / "loras" / "w.safetensors", 3, width=80)
    code, out, err = klein(
        "generate", "a circle", "-m", "tiny", "-s", "1", *SIZE, "--dry-run", *options
    )
    assert (code, out) == (wanted, "")
    assert words in err
    assert err.count("\n") == 2
    code, out, err = klein("generate", "a circle", "-m", "tiny", *SIZE, *options, "-o", "x.png")
    assert code == wanted
    assert words in err
    assert not Path("x.png").exists()


def test_an_adapter_for_the_other_size_is_refused_before_a_model_is_downloaded(
    klein: Klein, empty_folder: Path
) -> None:
    name = "double_blocks.0.img_mlp.0"
    for width, model, other in ((3072, "klein-9b", "4B"), (4096, "klein-base-4b", "9B")):
        up, down = torch.zeros(6 * width, 1), torch.zeros(1, width)
        path = empty_folder / f"{other}.safetensors"
        write(path, {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down})
        code, _, err = klein("generate", "a", "-m", model, "--lora", path.name, "--dry-run")
        assert code == 3
        assert f"is an adapter for FLUX.2 [klein] {other}: {model} is another size" in err


def test_a_row_with_a_bad_adapter_is_named_with_its_line(klein: Klein, empty_folder: Path) -> None:
    lines = [
        '{"prompt": "a"}',
        '{"prompt": "b", "lora": "c.safetensors"}',
        '{"prompt": "c", "lora": 3}',
    ]
    (empty_folder / "rows.jsonl").write_text("\n".join(lines))
    code, _, err = klein("generate", "--prompts-file", "rows.jsonl", "-m", "tiny", "--dry-run")
    assert code == 2
    assert "line 2: there is no adapter c.safetensors" in err
    assert "line 3: lora must be a path or a list of paths, not 3" in err


def test_an_adapter_is_told_by_its_content_and_a_pickle_is_not_opened(
    klein: Klein, empty_folder: Path
) -> None:
    """An ending alone was taken for a pickle, and a pickle for a damaged file, to fetch again."""
    write_for_tiny(empty_folder / "a.pt", 1)
    code, _, err = klein("generate", "a", "-m", "tiny", "--dry-run", "--lora", "a.pt")
    assert code == 0, err
    torch.save({"a": torch.zeros(1)}, empty_folder / "pickle.safetensors")
    code, _, err = klein("generate", "a", "-m", "tiny", "--dry-run", "--lora", "pickle.safetensors")
    assert code == 3
    assert "hint: klein never opens pickled weights: get them as safetensors\n" in err


def test_a_prompt_that_names_an_adapter_in_another_way_is_warned_of(klein: Klein) -> None:
    code, _, err = klein("generate", "a cat <lora:style:0.8>", "-m", "tiny", "--dry-run")
    assert code == 0
    assert "warning: a prompt names an adapter, and the model reads it as words: " in err
    assert "--lora style.safetensors=0.8\n" in err
    code, _, err = klein("generate", "a cat <3", "-m", "tiny", "--dry-run")
    assert "adapter" not in err


def test_an_image_is_drawn_again_with_the_same_adapter_wherever_it_is(
    klein: Klein, empty_folder: Path
) -> None:
    """By content: renamed, and another under its name; another weight, or file, is a variation."""
    draw = ("generate", "a circle", "-m", "tiny", "-s", "3", *SIZE, "-o", "i.png")
    assert klein(*draw, "--lora", "a.safetensors=0.5")[0] == 0
    again = ("reproduce", "i.png", "-y", "-o", "r.png")
    code, _, err = klein(*again)
    assert code == 0
    assert "r.png is i.png again, pixel for pixel" in err
    (empty_folder / "a.safetensors").rename(empty_folder / "loras" / "c.safetensors")
    code, _, err = klein(*again)
    assert code == 2
    assert "a.safetensors, with which i.png was made, is not here" in err
    code, _, err = klein(*again, "--models-dir", ".")
    assert code == 2, "the name is another"
    code, _, err = klein(*again, "--lora", "loras/c.safetensors")
    assert "pixel for pixel" in err
    assert adapters_in("r.png") == [("c.safetensors", 0.5)]
    code, _, err = klein(*again, "--lora", "loras/c.safetensors=1")
    assert code == 0
    assert "pixel for pixel" not in err
    write_for_tiny(empty_folder / "a.safetensors", 8)
    code, _, err = klein(*again)
    assert code == 2
    assert "a.safetensors is another adapter than the one that i.png was made with" in err
    code, _, err = klein(*again, "--lora", "a.safetensors")
    assert code == 0
    assert "i.png was not made of a.safetensors: what comes is a variation" in err


def test_bare_names_are_found_among_the_models(klein: Klein, empty_folder: Path) -> None:
    code, _, err = klein(
        "generate",
        "a circle",
        "-m",
        "tiny",
        *SIZE,
        "--models-dir",
        ".",
        "--lora",
        "b=0.5",
        "-o",
        "b.png",
    )
    assert code == 0, err
    assert adapters_in("b.png") == [("b.safetensors", 0.5)]
    (empty_folder / "loras" / "more").mkdir()
    write_for_tiny(empty_folder / "loras" / "more" / "b.safetensors", 2)
    code, _, err = klein("generate", "a", "-m", "tiny", "--models-dir", ".", "--lora", "b")
    assert code == 2
    assert "b is the name of 2 files" in err


@pytest.mark.process
def test_workers_draw_what_one_process_draws(klein: Klein, empty_folder: Path) -> None:
    """Each switches by itself, and finds the files by their paths."""
    rows = [
        {"prompt": f"a circle {n}", "seed": n, "lora": [f"a.safetensors={n % 2}"]} for n in range(4)
    ]
    (empty_folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = (
        "generate",
        "--prompts-file",
        "rows.jsonl",
        "-m",
        "tiny",
        *SIZE,
        "--lora",
        "loras/b.safetensors=0.5",
    )
    assert klein(*command, "-o", "alone/")[0] == 0
    code, out, err = klein(*command, "-o", "together/", "--workers", "2")
    assert (code, len(out.splitlines())) == (0, 4), err
    for path in Path("alone").glob("*.png"):
        other = Path("together") / path.name
        assert np.array_equal(pixels(str(path)), pixels(str(other))), path.name
        assert adapters_in(str(path)) == adapters_in(str(other))
