"""A folder that commit 41edafe left behind when two runs were killed in it can be resumed.

scripts/make_killed_folder.py made tests/fixtures/killed. The first image of both runs failed. The
second run's images hold no recipe, and its last one is not in the manifest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from klein_cli.cli.app import main

pytestmark = pytest.mark.lengthy

KILLED = Path(__file__).parents[1] / "fixtures" / "killed"
OPTIONS = ("-m", "tiny", "--size", "128x128", "--steps", "1", "--device", "cpu", "-o", "run/")
FIRST = ("--prompts-file", "prompts.jsonl", "-s", "5")
SECOND = ("--prompts-file", "prompts.jsonl", "-s", "100", "--no-metadata")
FAILED = [
    "run/0001-every-shape-in-every-colour-finely-patterned-100.png",
    "run/0001-every-shape-in-every-colour-finely-patterned-5.png",
]
MISSING = {
    FIRST: [
        "run/0005-a-green-triangle-on-a-black-background-9.png",
        "run/0006-a-blue-star-on-a-grey-background-10.png",
        "run/0007-a-purple-circle-on-a-black-background-11.png",
    ],
    SECOND: [
        "run/0005-a-green-triangle-on-a-black-background-104.png",
        "run/0006-a-blue-star-on-a-grey-background-105.png",
        "run/0007-a-purple-circle-on-a-black-background-106.png",
    ],
}
Klein = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _in_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(KILLED, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


@pytest.fixture
def klein(capfd: pytest.CaptureFixture[str]) -> Klein:
    """Run `klein generate` here -> the images that it drew, sorted."""

    def run(*arguments: str) -> list[str]:
        code = main(["generate", *OPTIONS, *arguments])
        said = capfd.readouterr()
        assert code == 0, said.err
        return sorted(said.out.splitlines())

    return run


def pictures(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.png")}


def test_what_is_missing_is_drawn_and_the_folder_ends_as_if_nothing_had_been_killed(
    klein: Klein, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a row, a recipe or a bare image is hashed otherwise than it was."""
    old = pictures("run")
    assert klein(*FIRST, "--resume") == sorted([FAILED[1], *MISSING[FIRST]])
    assert klein(*SECOND, "--resume") == sorted([FAILED[0], *MISSING[SECOND]])
    resumed = pictures("run")
    assert {name: resumed[name] for name in old} == old, "an image was written again"
    assert not Path("run/failed.jsonl").exists()
    assert klein(*FIRST, "--resume") == klein(*SECOND, "--resume") == []

    Path("whole").mkdir()
    shutil.copy("prompts.jsonl", "whole")
    monkeypatch.chdir("whole")
    drawn = klein(*FIRST) + klein(*SECOND)
    assert sorted(Path(path).name for path in drawn) == sorted(resumed)
    whole = pictures("run")
    assert [name for name in whole if name not in old and whole[name] != resumed[name]] == []


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_what_failed_is_given_again_and_then_the_rest_is_drawn(
    klein: Klein, resume: tuple[str, ...]
) -> None:
    """Fails if a row of failed.jsonl no longer finds its seed, its name and its run."""
    old = pictures("run")
    assert klein("--prompts-file", "run/failed.jsonl", *resume) == FAILED
    assert not Path("run/failed.jsonl").exists()
    for arguments, missing in MISSING.items():
        assert klein(*arguments, "--resume") == missing
    assert pictures("run").items() >= old.items()


def test_the_last_run_is_resumed_where_no_seed_is_given(klein: Klein) -> None:
    arguments = ("--prompts-file", "prompts.jsonl", "--no-metadata", "--resume")
    assert klein(*arguments) == sorted([FAILED[0], *MISSING[SECOND]])
    [row] = map(json.loads, Path("run/failed.jsonl").read_text().splitlines())
    assert row["seed"] == 5, "what another run failed to draw is no longer on record"


def test_the_fixture_is_what_it_should_be() -> None:
    """Two unfinished runs, a failed row in each, and a bare image that only `begun` tells of."""
    entries = [json.loads(line) for line in Path("run/manifest.jsonl").read_text().splitlines()]
    assert [entry["seed"] for entry in entries if entry["kind"] == "run"] == [5, 100]
    made = {entry["file"] for entry in entries if entry["kind"] == "picture"}
    assert set(pictures("run")) - made == {"0004-a-green-triangle-on-a-black-background-103.png"}
    failed = [json.loads(line) for line in Path("run/failed.jsonl").read_text().splitlines()]
    assert [f"run/{row['output']}" for row in failed] == FAILED[::-1]
