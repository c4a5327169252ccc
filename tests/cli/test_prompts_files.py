"""Prompts files from the shell to the manifest: benchmarks, streams, wildcards from files."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Klein = Callable[..., tuple[int, str, str]]
SMALL = ("--size", "32x32", "--steps", "1", "--device", "cpu", "-s", "1")
GENEVAL = (
    '{"tag": "two", "include": [{"class": "cube", "count": 2}], "prompt": "two cubes"}\n'
    '{"tag": "one", "include": [{"class": "ball", "count": 1}], "prompt": "a ball", "id": "b/1"}\n'
)


def entries(folder: str, kind: str) -> list[dict[str, Any]]:
    lines = Path(folder, "manifest.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def test_what_rows_say_to_others_goes_into_manifest_events_and_failures(
    klein: Klein, empty_folder: Path, random_snapshot: str
) -> None:
    Path("geneval.jsonl").write_text(GENEVAL)
    line = ("generate", "--prompts-file", "geneval.jsonl", "-m", random_snapshot, *SMALL)
    code, out, err = klein(*line, "-o", "o/", "--json")
    assert code == 0, err
    assert err.splitlines()[0] == "carried along into the manifest: tag, include"
    first, second = entries("o", "planned")
    assert first["carried"] == {"tag": "two", "include": [{"class": "cube", "count": 2}]}
    assert second["carried"]["id"] == "b/1"
    pictures = [event for event in map(json.loads, out.splitlines()) if event["event"] == "picture"]
    assert [event["carried"] for event in pictures] == [first["carried"], second["carried"]]
    code, _, err = klein(*line, "-o", "o/", "--resume")
    assert code == 0
    assert "2 of 2 images are there" in err


def test_a_failed_row_keeps_what_it_carries(
    klein: Klein, empty_folder: Path, random_snapshot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("geneval.jsonl").write_text(GENEVAL)
    monkeypatch.setattr("klein_cli.run.runner.encode", lambda *_: 1 / 0)
    line = ("generate", "--prompts-file", "geneval.jsonl", "-m", random_snapshot, *SMALL)
    assert klein(*line, "-o", "o/")[0] == 1
    monkeypatch.undo()
    os.chdir(empty_folder)
    failed = [json.loads(row) for row in Path("o/failed.jsonl").read_text().splitlines()]
    assert failed[0]["tag"] == "two"
    again = ("generate", "--prompts-file", "o/failed.jsonl", "-m", random_snapshot, *SMALL)
    assert klein(*again, "-o", "o/")[0] == 0


def test_templates_name_images_by_row_number_and_id(
    klein: Klein, empty_folder: Path, random_snapshot: str
) -> None:
    Path("p.jsonl").write_text(
        '{"prompt": "a", "id": 7, "n": 2}\n{"prompt": "b", "id": "../c d", "seed": 5}\n'
    )
    line = ("generate", "--prompts-file", "p.jsonl", "-m", random_snapshot, *SMALL)
    code, out, err = klein(*line, "-o", "o/{row:05d}/{n:04d}.png")
    assert code == 0, err
    assert out.split() == ["o/00001/0001.png", "o/00001/0002.png", "o/00002/0001.png"]
    code, out, err = klein(*line, "-o", "q/{id}-{n}.png")
    assert code == 0, err
    assert out.split() == ["q/7-1.png", "q/7-2.png", "q/c-d-1.png"]
    Path("p.jsonl").write_text('{"prompt": "a", "id": 7}\n{"prompt": "b"}\n')
    code, _, err = klein(*line, "-o", "r/{id}.png")
    assert code == 2
    assert "error: p.jsonl line 2: there is no id" in err


def test_a_remark_is_said_once_with_its_count_and_is_an_event(
    klein: Klein, empty_folder: Path
) -> None:
    Path("p.txt").write_text("a (red:1.3) cat\n" * 553)
    code, out, err = klein(
        "generate", "--prompts-file", "p.txt", "-m", "tiny", "--dry-run", "--json"
    )
    assert code == 0
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "line 1 and 552 more lines: (word:1.3) is taken as words" in warnings[0]
    assert sum(json.loads(line)["event"] == "warning" for line in out.splitlines()) == 1


def test_600_wildcard_lines_run(klein: Klein, empty_folder: Path) -> None:
    Path("cards").mkdir()
    Path("cards/noun.txt").write_text("\n".join(f"thing{number}" for number in range(600)))
    Path("p.txt").write_text("a {red|blue} __noun__, {2$$big|round|old}\n" * 600)
    line = ("generate", "--prompts-file", "p.txt", "-m", "tiny", "-s", "1", "--dry-run", "--json")
    code, out, err = klein(*line, "--wildcards-dir", "cards")
    assert code == 0, err
    planned = [event for event in map(json.loads, out.splitlines()) if event["event"] == "planned"]
    assert len(planned) == 600
    assert len({event["prompt"].split()[2] for event in planned}) > 350
    assert not any("__" in event["prompt"] for event in planned)


def test_a_wildcard_that_is_not_there_is_named_with_its_line(
    klein: Klein, empty_folder: Path
) -> None:
    Path("cards").mkdir()
    Path("p.txt").write_text("a cat\na __colour__ cat\n")
    line = ("generate", "--prompts-file", "p.txt", "-m", "tiny", "--dry-run")
    code, _, err = klein(*line, "--wildcards-dir", "cards")
    assert code == 2
    assert "error: p.txt line 2: __colour__ at character 3 has no file under cards" in err


@pytest.mark.process
def test_a_stream_is_drawn_as_it_comes(empty_folder: Path, random_snapshot: str) -> None:
    """Each image is whole before the next prompt is written, and a bad row fails alone."""
    line = ("generate", "--stream", "--prompts-file", "-", "-o", "o/", "-m", random_snapshot)
    run = subprocess.Popen(
        [sys.executable, "-m", "klein_cli", *line, *SMALL, "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdin is not None
    assert run.stdout is not None
    for number in (1, 2, 3):
        run.stdin.write(f'{{"prompt": "cat {number}", "tag": "t"}}\n')
        run.stdin.flush()
        while (event := json.loads(run.stdout.readline()))["event"] != "picture":
            pass
        assert event["path"] == f"o/000{number}-cat-{number}-{number}.png"
        assert event["carried"] == {"tag": "t"}
        assert Path(event["path"]).is_file()
    run.stdin.write('{"prompt": ""}\n{"prompt": "last", "width": 33}\n{"prompt": "end"}\n')
    out, err = run.communicate(timeout=60)
    events = [json.loads(row) for row in out.splitlines()]
    assert [event["event"] for event in events] == ["failed", "failed", "picture", "finished"]
    assert [event["line"] for event in events[:2]] == [4, 5]
    assert run.returncode == 1
    assert "4 images made, 2 failed" in err
    assert not Path("o/manifest.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "--stream draws the rows of a prompts file"),
        (("--prompts-file", "p.txt", "--resume"), "--stream and --resume exclude each other"),
        (("--prompts-file", "p.txt", "--dry-run"), "--stream and --dry-run exclude each other"),
        (("--prompts-file", "p.txt", "--workers", "2"), "--stream draws in one process"),
        (("--prompts-file", "p.txt", "-o", "-"), "-o - writes one image"),
    ],
)
def test_what_a_stream_cannot_be_combined_with_is_refused(
    more: tuple[str, ...], message: str, klein: Klein, empty_folder: Path
) -> None:
    Path("p.txt").write_text("a cat\n")
    given = more if more else ("a cat",)
    code, _, err = klein("generate", "--stream", "-m", "tiny", "--device", "cpu", *given)
    assert code == 2
    assert message in err


def test_options_of_prompts_files_need_one(klein: Klein, empty_folder: Path) -> None:
    for option in (("--prompt-column", "x"), ("--options-in-prompts",)):
        code, _, err = klein("generate", "a cat", "-m", "tiny", "--dry-run", *option)
        assert code == 2
        assert f"error: {option[0]} is for a prompts file" in err


PAGE = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(shutil.which("awk") is None, reason="there is no awk")
def test_the_page_on_benchmarks_leads_to_what_their_code_reads(
    klein: Klein, empty_folder: Path, random_snapshot: str
) -> None:
    Path("evaluation_metadata.jsonl").write_text(GENEVAL)
    Path("PartiPrompts.tsv").write_text("Prompt\tCategory\na cube\tA\na ball\tB\n")
    geneval, _, parti, _ = blocks("sh")
    draw, split = geneval.splitlines()
    code, _, err = klein(*shlex.split(draw)[1:], "-m", random_snapshot, *SMALL[:-2])
    assert code == 0, err
    subprocess.run(split, shell=True, check=True)
    for number, line in enumerate(GENEVAL.splitlines(), start=1):
        folder = Path(f"geneval/{number:05d}")
        assert (folder / "metadata.jsonl").read_text() == f"{line}\n"
        names = [path.name for path in sorted((folder / "samples").iterdir())]
        assert names == ["0001.png", "0002.png", "0003.png", "0004.png"]
    command = shlex.split(parti.partition(" > ")[0])[1:]
    code, out, err = klein(*command, "-m", random_snapshot, *SMALL[:-2])
    assert code == 0, err
    Path("parti.jsonl").write_text(out)
    subprocess.run([sys.executable, "-c", *blocks("python")], check=True)
    captions = json.loads(Path("captions.json").read_text())
    assert captions == {"0001-a-cube-1": "a cube", "0002-a-ball-2": "a ball"}
    assert {path.stem for path in Path("parti").glob("*.png")} == captions.keys()
