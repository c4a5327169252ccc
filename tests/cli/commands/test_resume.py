"""Runs that go on: when a manifest is kept, what --resume makes, and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

QUICK = ("--size", "64x64", "--steps", "1", "--device", "cpu")
Klein = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _prompts(empty_folder: Path) -> None:
    Path("p.txt").write_text("a cat\na dog\na cow\n")


@pytest.fixture
def klein(klein: Klein, random_snapshot: str) -> Klein:
    """Run `klein generate` here on the random model -> (exit code, stdout, stderr)."""
    return partial(klein, "generate", "-m", random_snapshot, *QUICK)


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*.png")}


def recipe_in(path: str) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.text["klein"])["recipe"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (("a cat", "-o", "d/"), None),
        (("a cat", "-o", "cat.png"), None),
        (("a cat", "-n", "2"), None),
        (("a cat", "-n", "2", "-o", "cat.png"), None),
        (("a cat", "-n", "2", "-o", "d/"), "d"),
        (("a cat", "--seeds", "1-2", "-o", "d/{seed}.png"), "d"),
        (("a cat", "-o", "d/", "--resume"), "d"),
        (("--prompts-file", "p.txt"), "."),
        (("--prompts-file", "p.txt", "-o", "d/{date}/{index}.png"), "d"),
        (("--prompts-file", "p.txt", "-o", "d/x.png"), "d"),
    ],
)
def test_when_a_manifest_is_kept(
    klein: Klein, arguments: tuple[str, ...], kept: str | None
) -> None:
    assert klein(*arguments, "--dry-run")[0] == 0
    assert os.listdir() == ["p.txt"], "a dry run left something behind"
    assert klein(*arguments, "-q")[0] == 0
    assert [str(path.parent) for path in Path().rglob("manifest.jsonl")] == ([kept] if kept else [])


def test_what_is_missing_is_made_and_what_is_there_is_not_touched(klein: Klein) -> None:
    assert klein("--prompts-file", "p.txt", "-o", "d/", "-s", "5")[0] == 0
    whole = files("d")
    Path("d/0002-a-dog-6.png").unlink()
    Path("d/0003-a-cow-7.png").write_bytes(whole["0003-a-cow-7.png"][:100])
    stamp = Path("d/0001-a-cat-5.png").stat()
    code, out, err = klein("--prompts-file", "p.txt", "-o", "d/", "--resume")
    assert (code, out.split()) == (0, ["d/0002-a-dog-6.png", "d/0003-a-cow-7.png"])
    assert err == "1 of 3 images are there\n"
    assert files("d") == whole
    assert Path("d/0001-a-cat-5.png").stat() == stamp


def test_a_file_that_grew_and_was_shuffled_ends_as_if_it_always_had_been_so(klein: Klein) -> None:
    assert klein("--prompts-file", "p.txt", "-o", "d/", "-s", "5")[0] == 0
    Path("d/0002-a-dog-6.png").unlink()
    Path("q.txt").write_text("a hen\na cow\na dog\na cat\na dog\n")
    code, out, _ = klein("--prompts-file", "q.txt", "-o", "d/", "--resume")
    assert code == 0
    assert sorted(out.split()) == [
        "d/0002-a-dog-6.png",
        "d/0004-a-hen-8.png",
        "d/0005-a-dog-9.png",
    ]
    Path("r.txt").write_text("a cat\na dog\na cow\na hen\na dog\n")
    assert klein("--prompts-file", "r.txt", "-o", "whole/", "-s", "5")[0] == 0
    assert files("d") == files("whole")


def test_when_all_is_there_the_model_is_not_loaded(klein: Klein) -> None:
    klein("--prompts-file", "p.txt", "-o", "d/")
    before = Path("d/manifest.jsonl").read_bytes()
    code, out, err = klein("--prompts-file", "p.txt", "-o", "d/", "--resume", "-v")
    assert (code, out, err.splitlines()[-1]) == (0, "", "3 of 3 images are there")
    assert "attention" not in err
    assert Path("d/manifest.jsonl").read_bytes() == before


def test_the_seed_that_was_drawn_stays(klein: Klein) -> None:
    _, _, err = klein("--prompts-file", "p.txt", "-o", "d/")
    seed = int(err.removeprefix("seed: "))
    whole = files("d")
    for name in whole:
        Path("d", name).unlink()
    assert klein("--prompts-file", "p.txt", "-o", "d/", "--resume")[2] == ""
    assert files("d") == whole
    assert recipe_in(f"d/0001-a-cat-{seed}.png")["seed"] == seed


def test_another_seed_than_the_runs_is_refused(klein: Klein) -> None:
    klein("--prompts-file", "p.txt", "-o", "d/", "-s", "5")
    assert klein("--prompts-file", "p.txt", "-o", "d/", "-s", "5", "--resume")[0] == 0
    code, _, err = klein("--prompts-file", "p.txt", "-o", "d/", "-s", "6", "--resume")
    assert code == 2
    assert err.splitlines()[0] == (
        "error: no run in this folder began with --seed 6; the last began with 5"
    )


def test_the_run_that_a_seed_names_is_gone_on_with_and_no_other(klein: Klein) -> None:
    """Both runs have all three prompts: the later one's images are not the earlier one's."""
    arguments = ("--prompts-file", "p.txt", "-o", "d/")
    klein(*arguments, "-s", "5")
    whole = files("d")
    Path("d/0003-a-cow-7.png").unlink()
    klein(*arguments, "-s", "100")
    assert klein(*arguments, "-s", "5", "--resume")[1] == "d/0003-a-cow-7.png\n"
    assert files("d").items() >= whole.items()
    for seed in ("5", "100"):
        assert klein(*arguments, "-s", seed, "--resume")[1] == ""


def test_what_is_resumed_twice_is_made_once(klein: Klein) -> None:
    """A row more of what an earlier run had, beside rows of a later run."""
    Path("one.txt").write_text("a cat\na cat\n")
    Path("two.txt").write_text("a dog\n")
    klein("--prompts-file", "one.txt", "-o", "d/", "-s", "1")
    klein("--prompts-file", "two.txt", "-o", "d/", "-s", "50")
    Path("all.txt").write_text("a dog\na cat\na cat\na cat\n")
    arguments = ("--prompts-file", "all.txt", "-o", "d/", "--resume")
    assert klein(*arguments)[1] == "d/0002-a-cat-51.png\n"
    assert klein(*arguments)[1:] == ("", "4 of 4 images are there\n")


def test_a_picture_beside_somebody_elses_is_found_again(klein: Klein) -> None:
    """Its new name is on record before it is drawn: a kill behind its file does not matter."""
    arguments = ("--prompts-file", "p.txt", "-o", "d/")
    klein(*arguments, "-s", "5")
    Image.new("RGB", (16, 16)).save("d/0001-a-cat-5.png")
    assert klein(*arguments, "--resume")[1] == "d/0001-a-cat-5-2.png\n"
    lines = Path("d/manifest.jsonl").read_text().splitlines(keepends=True)
    Path("d/manifest.jsonl").write_text("".join(lines[:-1]))
    assert klein(*arguments, "--resume")[1] == ""


def test_a_failed_row_stays_on_record_beside_somebody_elses_picture(
    klein: Klein, monkeypatch: pytest.MonkeyPatch
) -> None:
    klein("--prompts-file", "p.txt", "-o", "d/", "-s", "5")
    fail(2)
    Path("d/failed.jsonl").unlink()
    Image.new("RGB", (16, 16)).save("d/0002-a-dog-6.png")

    def refuse(*_: Any) -> None:
        Image.new("RGB", (16, 16)).save("d/0002-a-dog-6-2.png")
        raise ValueError("no image of this")

    monkeypatch.setattr("klein_cli.run.runner.encode", refuse)
    code, _, err = klein("--prompts-file", "p.txt", "-o", "d/", "--resume")
    assert code == 1
    assert "ValueError: no image of this" in err
    [row] = map(json.loads, Path("d/failed.jsonl").read_text().splitlines())
    assert (row["prompt"], row["output"]) == ("a dog", "0002-a-dog-6-2.png")


def test_a_run_that_was_never_begun_is_begun(klein: Klein) -> None:
    code, out, _ = klein("--prompts-file", "p.txt", "-o", "d/", "-s", "5", "--resume")
    assert (code, len(out.split())) == (0, 3)


def test_nothing_can_be_resumed_on_standard_output(klein: Klein) -> None:
    code, _, err = klein("a cat", "-o", "-", "--resume")
    assert code == 2
    assert "nothing for --resume" in err


def test_a_new_run_beside_one_that_is_not_finished_says_so(klein: Klein) -> None:
    klein("--prompts-file", "p.txt", "-o", "d/", "-s", "5")
    lines = Path("d/manifest.jsonl").read_text().splitlines(keepends=True)
    Path("d/manifest.jsonl").write_text("".join(lines[:-1]))
    code, out, err = klein("a hen", "-n", "2", "-o", "d/", "-s", "9")
    assert code == 0
    assert err.splitlines() == [
        "an earlier run in d made 2 of its 3 images: --resume continues it; this one begins anew"
    ]
    # And the earlier one can still be taken up; by its seed, with what was added since.
    Path("d/0001-a-cat-5.png").unlink()
    _, out, _ = klein("--prompts-file", "p.txt", "-o", "d/", "--resume")
    assert out == "d/0001-a-cat-5.png\n"
    Path("p.txt").write_text("a cat\na dog\na cow\na pig\n")
    _, out, _ = klein("--prompts-file", "p.txt", "-o", "d/", "-s", "5", "--resume")
    assert out == "d/0004-a-pig-8.png\n"


def fail(row: int, folder: str = "d") -> None:
    """As if that image of the run had failed."""
    lines = Path(folder, "manifest.jsonl").read_text().splitlines(keepends=True)
    facts = [json.loads(line) for line in lines]
    gone = next(f for f in facts if f["kind"] == "picture" and f["index"] == row)
    lines.pop(facts.index(gone))
    Path(folder, "manifest.jsonl").write_text("".join(lines))
    recipe = recipe_in(f"{folder}/{gone['file']}")
    said = {key: recipe[key] for key in ("prompt", "seed", "width", "height", "steps")}
    Path(folder, "failed.jsonl").write_text(json.dumps({**said, "output": gone["file"]}) + "\n")
    Path(folder, gone["file"]).unlink()


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_what_failed_is_tried_by_itself_and_the_run_goes_on_as_before(
    klein: Klein, resume: tuple[str, ...]
) -> None:
    """The second run has a seed of its own, which is nothing to the first."""
    klein("--prompts-file", "p.txt", "-o", "d/", "-s", "5")
    whole = files("d")
    fail(2)
    code, out, _ = klein("--prompts-file", "d/failed.jsonl", "-o", "d/", *resume)
    assert (code, out) == (0, "d/0002-a-dog-6.png\n")
    assert not Path("d/failed.jsonl").exists()
    assert files("d") == whole
    Path("p.txt").write_text("a cat\na dog\na cow\na pig\n")
    for seed in ((), ("-s", "5")):
        code, out, err = klein("--prompts-file", "p.txt", "-o", "d/", *seed, "--resume")
        assert (code, out) == (0, "" if seed else "d/0004-a-pig-8.png\n"), err


def test_a_run_of_rows_with_seeds_goes_on_and_gets_a_seed_when_it_needs_one(klein: Klein) -> None:
    Path("p.jsonl").write_text('{"prompt": "a cat", "seed": 3}\n')
    klein("--prompts-file", "p.jsonl", "-o", "d/")
    before = Path("d/manifest.jsonl").read_bytes()
    assert klein("--prompts-file", "p.jsonl", "-o", "d/", "--resume")[1] == ""
    assert Path("d/manifest.jsonl").read_bytes() == before
    with open("p.jsonl", "a") as file:
        file.write('{"prompt": "a dog"}\n')
    _, out, _ = klein("--prompts-file", "p.jsonl", "-o", "d/", "-s", "8", "--resume")
    assert out == "d/0002-a-dog-9.png\n"
    assert klein("--prompts-file", "p.jsonl", "-o", "d/", "--resume")[1] == ""


@pytest.mark.parametrize("output", ["d/", "d/x.png"])
def test_a_bare_picture_is_known_again_though_it_says_nothing_of_itself(
    klein: Klein, output: str
) -> None:
    """A run that dies between an image and its line must find it again."""
    arguments = ("--prompts-file", "p.txt", "-o", output, "-s", "5", "--no-metadata")
    klein(*arguments)
    whole = files("d")
    lines = Path("d/manifest.jsonl").read_text().splitlines(keepends=True)
    Path("d/manifest.jsonl").write_text("".join(lines[:-1]))
    code, out, err = klein(*arguments, "--resume")
    assert (code, out, err) == (0, "", "3 of 3 images are there\n")
    assert files("d") == whole
    assert json.loads(Path("d/manifest.jsonl").read_text().splitlines()[-1])["kind"] == "picture"


def test_a_bare_picture_that_was_tried_by_itself_is_known_to_its_run(klein: Klein) -> None:
    arguments = ("-o", "d/", "--no-metadata")
    klein("--prompts-file", "p.txt", *arguments, "-s", "5")
    lines = Path("d/manifest.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line).get("index") != 2 or '"planned"' in line]
    Path("d/manifest.jsonl").write_text("".join(kept))
    Path("d/0002-a-dog-6.png").unlink()
    row = {"prompt": "a dog", "seed": 6, "output": "0002-a-dog-6.png"}
    Path("d/failed.jsonl").write_text(json.dumps(row) + "\n")
    assert klein("--prompts-file", "d/failed.jsonl", *arguments)[1] == "d/0002-a-dog-6.png\n"
    assert klein("--prompts-file", "p.txt", *arguments, "--resume")[1] == ""


def test_pictures_with_and_without_their_recipe_are_not_mixed_in_silence(klein: Klein) -> None:
    arguments = ("--prompts-file", "p.txt", "-o", "d/", "-s", "5")
    klein(*arguments)
    Path("d/0001-a-cat-5.png").unlink()
    _, _, err = klein(*arguments, "--no-metadata", "--resume")
    assert "warning: the images so far were made with metadata yes, not no\n" in err


def test_what_an_older_manifest_does_not_tell_is_no_difference(klein: Klein) -> None:
    klein("--prompts-file", "p.txt", "-o", "d/", "-s", "5")
    Path("d/0001-a-cat-5.png").unlink()
    text = Path("d/manifest.jsonl").read_text()
    Path("d/manifest.jsonl").write_text(
        text.replace(',"kernels":"torch","quantize":"none","metadata":"yes"', "")
    )
    _, out, err = klein("--prompts-file", "p.txt", "-o", "d/", "--resume")
    assert (out, err) == ("d/0001-a-cat-5.png\n", "2 of 3 images are there\n")


def test_pictures_that_will_be_computed_otherwise_are_warned_of(klein: Klein) -> None:
    klein("--prompts-file", "p.txt", "-o", "d/", "-s", "5")
    Path("d/0001-a-cat-5.png").unlink()
    arguments = ("--prompts-file", "p.txt", "-o", "d/", "--resume", "--dtype", "bfloat16")
    _, _, err = klein(*arguments)
    assert "warning: the images so far were made with dtype float32, not bfloat16\n" in err


def test_what_a_killed_run_had_not_replaced_is_made(klein: Klein) -> None:
    Path("p.jsonl").write_text('{"prompt": "a cat", "seed": 1}\n{"prompt": "a dog", "seed": 2}\n')
    arguments = ("--prompts-file", "p.jsonl", "-o", "d/")
    klein(*arguments)
    before = files("d")
    again = (*arguments, "-y", "--dtype", "bfloat16")
    klein(*again)
    after = files("d")
    lines = Path("d/manifest.jsonl").read_text().splitlines(keepends=True)
    Path("d/manifest.jsonl").write_text("".join(lines[:-1]))
    Path("d/0002-a-dog-2.png").write_bytes(before["0002-a-dog-2.png"])
    assert klein(*again, "--resume")[1] == "d/0002-a-dog-2.png\n"
    assert files("d") == after != before


def test_unreadable_lines_are_warned_of(klein: Klein) -> None:
    klein("--prompts-file", "p.txt", "-o", "d/", "-s", "5")
    with open("d/manifest.jsonl", "ab") as file:
        file.write(b"\0\0\0\n")
    _, _, err = klein("--prompts-file", "p.txt", "-o", "d/", "--resume")
    assert err.splitlines()[0] == "warning: d/manifest.jsonl has 1 unreadable line"
