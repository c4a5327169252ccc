"""`klein edit` and `klein generate -i` on a small random model: files, sizes, records, refusals."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
from given_images import mask, photo, transparent
from PIL import Image

pytestmark = pytest.mark.usefixtures("empty_folder")

LONG = "make the red circle blue, and then " * 10
"""More than a file's name can be: asking whether there is such a file is an error of its own."""


@pytest.fixture
def run(klein: Any, random_snapshot: str) -> Any:
    """Run a command of klein's here on the random model -> (exit code, stdout, stderr)."""

    def with_model(command: str, *arguments: str) -> Any:
        quick = ("-m", random_snapshot, "--steps", "1", "--device", "cpu", "-s", "5")
        return klein(command, *quick, *arguments)

    return with_model


@pytest.fixture
def edit(run: Any) -> Any:
    """Run `klein edit`."""
    return partial(run, "edit")


def record_in(path: str) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.text["klein"])  # type: ignore[no-any-return]


def pixels(path: str) -> Any:
    with Image.open(path) as image:
        return numpy.asarray(image)


def sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_an_image_and_words_become_an_image_of_its_shape_that_knows_what_it_was_made_of(
    edit: Any,
) -> None:
    photo("in/a.jpg", 100, 70)
    assert edit("in/a.jpg", "make it red", "-o", "b.png") == (0, "b.png\n", "")
    with Image.open("b.png") as image:
        assert image.size == (96, 64)
    record = record_in("b.png")
    assert record["format"] == 3
    assert record["recipe"]["references"] == [
        {"sha256": sha256("in/a.jpg"), "name": "a.jpg", "width": 96, "height": 64}
    ]
    assert "in/" not in json.dumps(record), "a path tells whose disk it was"


def test_edit_and_generate_with_an_image_are_the_same(run: Any) -> None:
    photo("a.png", seed=1)
    photo("b.png", 64, 64, seed=2)
    run("edit", "a.png", "red", "-i", "b.png", "-o", "one.png")
    run("generate", "red", "-i", "a.png", "-i", "b.png", "-o", "two.png")
    assert numpy.array_equal(pixels("one.png"), pixels("two.png"))
    assert record_in("one.png") == record_in("two.png")
    run("edit", "b.png", "red", "-i", "a.png", "--size", "96x64", "-o", "swapped.png")
    assert not numpy.array_equal(pixels("one.png"), pixels("swapped.png"))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ((), (96, 64)),
        (("-W", "192"), (192, 128)),
        (("-H", "32"), (48, 32)),
        (("--size", "64x64"), (64, 64)),
        (("-W", "64", "-H", "80"), (64, 80)),
    ],
)
def test_sizes_follow_the_first_image(edit: Any, options: tuple[str, ...], size: Any) -> None:
    photo("a.png")
    out = edit("a.png", "red", "--dry-run", "--json", *options)[1]
    planned = json.loads(out.splitlines()[0])
    assert (planned["width"], planned["height"]) == size


def test_one_side_never_makes_more_than_a_megapixel_unasked(edit: Any) -> None:
    photo("a.png", 64, 64)
    code, _, err = edit("a.png", "red", "-W", "2048", "--dry-run")
    assert code == 2
    assert "2048x2048, more than a megapixel" in err
    assert edit("a.png", "red", "--size", "2048x2048", "--dry-run")[0] == 0


def test_a_plan_tells_what_the_model_sees_of_each_image(edit: Any) -> None:
    """The cap and the crop surprise those who compare with other programs."""
    photo("a.png", 1300, 1000)
    photo("b.png", 100, 75, seed=1)
    _, out, err = edit("a.png", "red", "-i", "b.png", "--dry-run", "-v")
    assert "  a.png 1152x896 4032 tokens  b.png 96x64 24 tokens" in out
    assert "a.png: 1300x1000, seen as 1152x896, 4032 tokens" in err
    out = edit("a.png", "red", "-i", "b.png", "--dry-run", "--json")[1]
    planned = json.loads(out.splitlines()[0])
    assert planned["image"] == ["a.png", "b.png"]
    assert planned["references"][1] == {"name": "b.png", "width": 96, "height": 64, "tokens": 24}


def test_an_image_comes_from_standard_input(edit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    photo("a.png")
    edit("a.png", "red", "-o", "b.png")
    piped = io.TextIOWrapper(io.BytesIO(Path("a.png").read_bytes()))
    monkeypatch.setattr(sys, "stdin", piped)
    edit("-", "red", "-o", "c.png")
    assert numpy.array_equal(pixels("b.png"), pixels("c.png"))


def test_a_mask_keeps_the_rest_bit_for_bit(edit: Any) -> None:
    photo("a.png", 99, 70)
    mask("m.png", (20, 20, 40, 40), 99, 70)
    assert edit("a.png", "red", "--mask", "m.png", "-o", "b.png")[0] == 0
    before, after = pixels("a.png"), pixels("b.png")
    inside = pixels("m.png") > 0
    assert before.shape == after.shape
    assert numpy.array_equal(before[~inside], after[~inside])
    assert not numpy.array_equal(before[inside], after[inside])
    assert record_in("b.png")["recipe"]["mask"]["sha256"] == sha256("m.png")


def test_expand_adds_what_was_asked_for(edit: Any) -> None:
    photo("a.png")
    assert edit("a.png", "red", "--expand", "16,0,5,8", "-o", "b.png")[0] == 0
    after = pixels("b.png")
    assert after.shape == (72, 117, 3)
    assert numpy.array_equal(after[:64, 16:112], pixels("a.png"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("make it red", "a.png"), "hint: klein edit a.png 'make it red'"),
        ((LONG, "a.png"), "the image comes first"),
        (("nix.png", LONG), "cannot read the image nix.png"),
        (("a.png", "red", "-i", LONG), "File name too long"),
        (("a.png", "red", "--mask", LONG), "File name too long"),
        (("my photo.png",), "klein edit 'my photo.png' "),
        (("a.png", "p.txt"), "klein edit a.png --prompts-file p.txt"),
        (("", "red", "-o", "out"), "the path is empty"),
        (("a.png", "red", "--mask", ""), "--mask is empty"),
        (("a.png", "red", "-i", "https://a.org/b.png"), "is an address, not a path"),
        (("a.png", "red", "--mask", "in"), "the mask in is a folder"),
        (("a.png",), "there is no prompt"),
        (("a.png", "m.png"), 'klein edit a.png "make the car red" -i m.png'),
        (("a.png", "m.png", "red"), "for many images, name their folder"),
        (("make it red",), "there is no image make it red"),
        (("nix.png", "red"), "cannot read the image nix.png"),
        (("-", "-"), "standard input is asked for more than once"),
        (("a.png", "red", "--mask", "m.png", "--size", "64x64"), "--mask and a size exclude each"),
        (("a.png", "red", "--expand", "8", "-W", "64"), "--expand and a size exclude each"),
        (("a.png", "red", "--mask", "m.png", "-o", "b.jpg"), "a JPEG file does not keep"),
        (("a.png", "red", "--expand", "8,8"), "--expand 8,8 is not valid"),
        (("a.png", "red", "--expand", "0"), "is out of range"),
        (("a.png", "red", "--expand", "8", "--mask-blur", "-1"), "--mask-blur -1 is out of range"),
        (("a.png", "red", "--mask-blur", "4"), "--mask-blur needs --mask"),
        (("a.png", "red", "--no-keep"), "--no-keep needs --mask"),
        (("a.png", "red", "--keep-format"), "--keep-format is for a folder"),
        (("a.png", "red", "--mask", "alpha"), "has no transparent part"),
        (("a.png", "red", "--mask", "black.png"), "leaves nothing to repaint"),
        (("in", "red"), "in is a folder"),
        (("in", "red", "-o", "-"), "in is a folder"),
        (("in", "red", "-o", "in/out", "-y"), "lies in in"),
        (("in", "red", "-o", "out.png"), "out.png is a file's name"),
        (("in", "--prompts-file", "p.txt", "-o", "out"), "takes one prompt"),
        (("a.png", "red", *("-i", "a.png") * 10), "11 images are given"),
    ],
)
def test_what_cannot_go_together_is_refused_before_anything_is_made(
    edit: Any, arguments: tuple[str, ...], said: str
) -> None:
    photo("a.png")
    photo("in/a.png")
    photo("my photo.png")
    Path("p.txt").write_text("red")
    mask("m.png", (0, 0, 9, 9))
    mask("black.png", (0, 0, 0, 0))
    before = sorted(os.listdir())
    code, out, err = edit(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 2
    assert sorted(os.listdir()) == before


def test_a_prompt_that_is_an_image_is_noticed(run: Any) -> None:
    photo("a.png")
    code, _, err = run("generate", "a.png")
    assert code == 2
    assert 'klein edit a.png "' in err


def test_more_images_than_the_model_was_made_for_are_warned_of(edit: Any) -> None:
    photo("a.png")
    err = edit("a.png", "red", *("-i", "a.png") * 4, "--dry-run")[2]
    assert "warning: 5 images are given: the model was made for up to 4 at once" in err


def test_rows_bring_images_of_their_own(run: Any) -> None:
    photo("rows/a.png", seed=1)
    photo("rows/b.png", 64, 64, seed=2)
    mask("rows/m.png", (0, 0, 30, 30))
    rows = [
        {"prompt": "words", "width": 64, "height": 64},
        {"prompt": "one", "image": "a.png"},
        {"prompt": "two", "image": ["b.png", "a.png"], "output": "two.png"},
        {"prompt": "part", "image": "a.png", "mask": "m.png", "output": "part.png"},
        {"prompt": "more", "image": "a.png", "expand": [0, 0, 16, 0], "output": "more.png"},
    ]
    Path("rows/p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, _, err = run("generate", "--prompts-file", "rows/p.jsonl", "-o", "d/", "-H", "64")
    assert code == 2
    assert "line 4" in err
    assert "a size and a mask cannot be combined" in err
    code, out, _ = run("generate", "--prompts-file", "rows/p.jsonl", "-o", "d/")
    assert code == 0
    assert len(out.split()) == 5
    assert pixels("d/two.png").shape[:2] == (64, 64)
    assert pixels("d/part.png").shape[:2] == (64, 96)
    assert pixels("d/more.png").shape[:2] == (64, 112)
    assert "references" not in record_in("d/0001-words-5.png")["recipe"]


def test_a_changed_image_is_new_and_a_renamed_one_the_same(run: Any) -> None:
    photo("a.png", seed=1)
    row = {"prompt": "one", "image": "a.png"}
    Path("p.jsonl").write_text(json.dumps(row))
    again = partial(run, "generate", "--prompts-file", "p.jsonl", "-o", "d/", "--resume")
    assert again()[1] == "d/0001-one-5.png\n"
    os.rename("a.png", "b.png")
    Path("p.jsonl").write_text(json.dumps({**row, "image": "b.png"}))
    assert again()[1] == ""
    photo("b.png", seed=2)
    assert again()[1] == "d/0002-one-6.png\n"


def test_an_edit_is_made_again_from_its_file_alone(
    klein: Any, edit: Any, random_snapshot: str
) -> None:
    photo("a.png", seed=1)
    mask("m.png", (0, 0, 30, 30))
    edit("a.png", "red", "--mask", "m.png", "--mask-blur", "2", "-o", "b.png")
    assert record_in("b.png")["recipe"]["mask"]["blur"] == 2
    again = partial(klein, "reproduce", "b.png", "-m", random_snapshot, "-o")
    assert "c.png is b.png again, pixel for pixel" in again("c.png")[2]
    os.makedirs("elsewhere")
    shutil.move("a.png", "elsewhere/a.png")
    code, _, err = again("d.png")
    assert (code, err.splitlines()[0]) == (2, "error: a.png is not here, that b.png was made of")
    assert "d.png is b.png again, pixel for pixel" in again("d.png", "-i", "elsewhere")[2]


def test_another_image_makes_a_variation_that_is_said(
    klein: Any, edit: Any, random_snapshot: str
) -> None:
    photo("a.png", seed=1)
    photo("new.png", seed=7)
    edit("a.png", "red", "-o", "b.png")
    again = partial(klein, "reproduce", "b.png", "-m", random_snapshot, "-o")
    code, _, err = again("c.png", "-i", "new.png")
    assert code == 0
    assert "warning: b.png was not made of new.png: what comes is a variation" in err
    assert "pixel for pixel" not in err
    assert record_in("c.png")["recipe"]["references"][0]["sha256"] == sha256("new.png")


@pytest.fixture
def photos() -> Path:
    """A folder with images that can be edited, and some that cannot."""
    photo("in/a.jpg", seed=1)
    photo("in/a.png", seed=2)
    photo("in/b.webp", seed=3)
    transparent("in/logo.png")
    photo("in/small.png", 20, 20)
    Path("in/broken.png").write_bytes(b"no image")
    return Path("in")


def test_each_image_of_a_folder_is_edited_by_itself(edit: Any, photos: Path) -> None:
    code, out, err = edit("in", "red", "-o", "out")
    assert code == 1
    names = ["a-jpg.png", "a-png.png", "b.png", "logo.png"]
    assert sorted(out.split()) == [f"out/{name}" for name in names]
    assert set(os.listdir("out")) == {*names, "failed.jsonl", "manifest.jsonl"}
    assert pixels("out/logo.png").shape[2] == 4
    assert record_in("out/b.png")["recipe"]["references"][0]["name"] == "b.webp"
    assert "error: in/small.png: small.png is 20x20, and too small" in err
    assert "4 of 6 images made, 2 failed: see out/failed.jsonl" in err
    before = {name: Path("out", name).read_bytes() for name in names}
    code, out, _ = edit("in", "red", "-o", "out", "--resume")
    assert (code, out) == (2, ""), "nothing was left to make but what cannot be"
    assert {name: Path("out", name).read_bytes() for name in names} == before


def test_formats_and_alpha_are_as_asked_for(edit: Any, photos: Path) -> None:
    options = ("-o", "out", "--keep-format", "--opaque", "--expand", "0,0,0,16")
    _, out, err = edit("in", "red", *options)
    assert "a JPEG file encodes again what the mask keeps" in err
    assert sorted(out.split()) == ["out/a.jpg", "out/a.png", "out/b.webp", "out/logo.png"]
    assert pixels("out/logo.png").shape[2] == 3


def test_what_failed_in_a_folder_can_be_given_again(run: Any, edit: Any, photos: Path) -> None:
    """Its rows name images from where failed.jsonl lies, and the names that they should have."""
    edit("in", "red", "-o", "out")
    photo("in/small.png", seed=8)
    photo("in/broken.png", seed=9)
    code, out, _ = run("generate", "--prompts-file", "out/failed.jsonl", "-o", "out/")
    assert (code, sorted(out.split())) == (0, ["out/broken.png", "out/small.png"])
    assert not Path("out/failed.jsonl").exists()
    assert edit("in", "red", "-o", "out", "--resume")[:2] == (0, "")


def test_a_folder_whose_images_have_changed_is_edited_anew(edit: Any, photos: Path) -> None:
    edit("in", "red", "-o", "out")
    photo("in/b.webp", seed=33)
    assert edit("in", "red", "-o", "out", "--resume")[1] == "out/b-2.png\n"


@pytest.mark.parametrize("several", [(), ("-n", "2")])
def test_a_copy_that_is_new_in_a_folder_is_edited_too(edit: Any, several: tuple[str, ...]) -> None:
    """Copies are equal rows: counted in their order, the new one in the middle would be taken for
    the last, which is there, and never be made.
    """
    again = partial(edit, "in", "red", "-o", "out", "--resume", *several)
    for name in ("a.png", "z.png"):
        photo(f"in/{name}")
    again()
    shutil.copy("in/a.png", "in/m.png")
    made = ["out/m-0001.png", "out/m-0002.png"] if several else ["out/m.png"]
    assert again()[1].split() == made
    assert again()[1] == ""
    Path("in/z.png").rename("in/b.png")
    assert again()[1] == "", "what was only renamed is there"


def test_a_copy_is_found_by_its_name_where_another_file_had_it(edit: Any) -> None:
    """The second prompt's images are a-2.png and z-2.png: their own names are in the manifest."""
    for name in ("a.png", "z.png"):
        photo(f"in/{name}")
    edit("in", "red", "-o", "out")
    again = partial(edit, "in", "blue", "-o", "out", "--resume")
    assert again()[1].split() == ["out/a-2.png", "out/z-2.png"]
    shutil.copy("in/a.png", "in/m.png")
    assert again()[1].split() == ["out/m.png"]
    assert again()[1] == ""


def test_any_name_of_a_file_can_be_edited_and_resumed(edit: Any) -> None:
    """A name that a result cannot have was refused, and its row in failed.jsonl with it."""
    for name in ("two\nlines.png", f"{'n' * 251}.png"):
        photo(f"in/{name}")
    code, out, _ = edit("in", "red", "-o", "out")
    assert (code, len(out.split())) == (0, 2)
    assert "two_lines.png" in os.listdir("out")
    assert edit("in", "red", "-o", "out", "--resume")[:2] == (0, "")


def test_a_dry_run_is_lines_whatever_files_are_called(edit: Any) -> None:
    """Fails if a line break in a name breaks a warning in two."""
    photo("in/a.png")
    photo("in/a\nb.png", 20, 20)
    _, out, err = edit("in", "red", "-o", "out", "--dry-run")
    assert re.search(r"  1 step  \d+ tokens?  ", out)
    assert err.splitlines()[-1].startswith("warning: in/a\\nb.png cannot be edited")


def test_a_plan_tells_each_size_once(run: Any) -> None:
    """Whatever images of one size are made of, they are images of one size to a reader."""
    photo("a.png")
    rows = [{"prompt": "a", "image": "a.png"}, {"prompt": "b", "image": ["a.png", "a.png"]}]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    err = run("generate", "--prompts-file", "p.jsonl", "-o", "d/", "--dry-run")[2]
    assert err.splitlines()[-1] == "2 images to make"


def test_programs_hear_what_of_a_folder_is_left_out(edit: Any, photos: Path) -> None:
    Path("in/notes.txt").write_text("x")
    events = [json.loads(line) for line in edit("in", "red", "-o", "o", "--json")[1].splitlines()]
    said = [event["message"] for event in events if event["event"] == "notice"]
    assert "left out, no images: notes.txt" in said


def test_a_prompts_file_is_no_prompt(run: Any) -> None:
    """Its name was drawn, without a word."""
    Path("my prompts.txt").write_text("red")
    code, _, err = run("generate", "my prompts.txt")
    assert (code, "klein generate --prompts-file 'my prompts.txt'" in err) == (2, True)


def test_events_tell_of_each_image(edit: Any, photos: Path) -> None:
    _, out, _ = edit("in", "red", "-o", "out", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    made = {event["image"][0]: event["path"] for event in events if event["event"] == "picture"}
    assert made["a.jpg"] == "out/a-jpg.png"
    failed = {event["image"] for event in events if event["event"] == "failed"}
    assert failed == {"in/broken.png", "in/small.png"}
    assert events[-1] == {"event": "finished", "made": 4, "failed": 2}


def test_what_every_row_says_for_itself_is_not_given_in_vain(run: Any) -> None:
    photo("a.png", seed=1)
    photo("b.png", seed=2)
    Path("p.jsonl").write_text(json.dumps({"prompt": "a", "image": "a.png"}))
    rows = ("generate", "--prompts-file", "p.jsonl", "--dry-run")
    assert "--image has no effect: every row has its own" in run(*rows, "-i", "b.png")[2]
    with Path("p.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"prompt": "b"}))
    assert "no effect" not in run(*rows, "-i", "b.png")[2]


def test_an_option_for_masks_where_no_row_has_one_is_warned_of(run: Any) -> None:
    Path("p.txt").write_text("a cat")
    err = run("generate", "--prompts-file", "p.txt", "--no-keep", "--dry-run")[2]
    assert "warning: --no-keep has no effect: no image has a mask" in err
