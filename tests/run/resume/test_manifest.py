"""The manifest: one run at a time, nothing torn, nothing trusted, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from klein_cli.errors import UsageError
from klein_cli.recipe import Recipe
from klein_cli.run.resume.history import (
    FILE,
    History,
    Item,
    file_hash,
    read_history,
    recipe_hash,
)
from klein_cli.run.resume.manifest import opened

RECIPE = Recipe(prompt="a café", seed=7, width=64, height=48, steps=4, guidance=1.0, model="tiny")


def item(index: int = 1, run: int = 1, **changes: Any) -> Item:
    return Item(
        **{"run": run, "index": index, "seed": 6 + index, "file": f"{index}.png", **changes}
    )


def begin(folder: Path, rows: str = "ab", run: int = 1, seed: int = 7) -> None:
    with opened(folder) as manifest:
        manifest.begin(run, model="tiny", seed=seed)
        manifest.plan((row, item(index, run)) for index, row in enumerate(rows, start=1))


def taken(history: History, row: str, *, own_seed: bool = False) -> Item | None:
    return history.take(row, own_seed=own_seed)[1]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    begin(tmp_path)
    with opened(tmp_path) as manifest:
        manifest.made(item(2, recipe="r", sha256="s", file="2-2.png"), RECIPE, 1.23456)
    assert lines(tmp_path)[-1] == {
        "kind": "picture",
        "run": 1,
        "index": 2,
        "file": "2-2.png",
        "seed": 8,
        "recipe": "r",
        "sha256": "s",
        "width": 64,
        "height": 48,
        "steps": 4,
        "seconds": 1.235,
    }
    history = read_history(tmp_path)
    assert history is not None
    assert (history.run, history.seed, history.next_index) == (1, 7, 3)
    assert history.progress() == (1, 2)
    assert history.seconds(RECIPE) == 1.235
    assert taken(history, "a") == item(1)
    assert taken(history, "b") == item(2, recipe="r", sha256="s", file="2-2.png")
    assert taken(history, "c") is None


def test_equal_rows_take_their_pictures_in_turn(tmp_path: Path) -> None:
    begin(tmp_path, "aba")
    history = read_history(tmp_path)
    assert history is not None
    assert [taken(history, "a"), taken(history, "a"), taken(history, "a")] == [
        item(1),
        item(3),
        None,
    ]


def test_a_row_is_looked_for_in_the_last_run_that_knows_it(tmp_path: Path) -> None:
    begin(tmp_path, "aac")
    begin(tmp_path, "ab", run=2, seed=100)
    history = read_history(tmp_path)
    assert history is not None
    assert (history.run, history.seed, history.next_index) == (2, 100, 3)
    # The second "a" of the file is new to the second run, though the first had two.
    assert [taken(history, "a"), taken(history, "a")] == [item(1, run=2), None]
    assert taken(history, "c") == item(3)
    assert history.progress() == (0, 2)


def test_a_run_that_is_named_is_looked_in_alone(tmp_path: Path) -> None:
    """Else the images of a later run, with other seeds, would pass for its own."""
    begin(tmp_path, "ab")
    begin(tmp_path, "abc", run=2, seed=100)
    history = read_history(tmp_path)
    assert history is not None
    assert history.resume_from(7)
    assert [taken(history, row) for row in "abc"] == [item(1), item(2), None]
    assert taken(history, "c", own_seed=True) is None
    again = read_history(tmp_path)
    assert again is not None
    assert again.resume_from(7)
    # Whose seed is its own, is the same picture in any run.
    assert taken(again, "c", own_seed=True) == item(3, run=2)


def test_a_row_that_an_earlier_run_knows_can_be_had_once_more(tmp_path: Path) -> None:
    """The new one is planned in the run that is gone on with, and the two before are not lost."""
    begin(tmp_path, "aa")
    begin(tmp_path, "b", run=2, seed=100)
    third = item(2, run=2, occurrence=2)
    with opened(tmp_path) as manifest:
        manifest.plan([("a", third)])
    history = read_history(tmp_path)
    assert history is not None
    assert [taken(history, "a") for _ in range(4)] == [item(1), item(2), third, None]
    assert history.next_index == 3


def test_a_picture_planned_twice_has_its_second_name(tmp_path: Path) -> None:
    begin(tmp_path, "ab")
    with opened(tmp_path) as manifest:
        manifest.plan([("a", item(1, file="1-2.png", occurrence=0))])
    history = read_history(tmp_path)
    assert history is not None
    assert [taken(history, "a"), taken(history, "a")] == [item(1, file="1-2.png"), None]
    assert history.progress() == (0, 2)


def test_what_one_run_planned_and_another_made_is_made(tmp_path: Path) -> None:
    """A row of failed.jsonl, tried by itself: the first run has its image."""
    begin(tmp_path, "ab")
    with opened(tmp_path) as manifest:
        manifest.begin(2, model="tiny", seed=None)
        second = item(1, run=2, seed=8, file="2.png", recipe="r", sha256="s")
        manifest.plan([("c", second)])
        manifest.begun(second)
        manifest.made(second, RECIPE, 1.0)
    history = read_history(tmp_path)
    assert history is not None
    assert taken(history, "a") == item(1)
    assert taken(history, "b") == item(2, recipe="r", sha256="s", begun=("r", "s"))


def test_what_an_earlier_run_made_is_not_made_for_a_later_one(tmp_path: Path) -> None:
    """`-y` means to make it anew."""
    begin(tmp_path, "a")
    with opened(tmp_path) as manifest:
        manifest.made(item(1, recipe="r", sha256="s"), RECIPE, 1.0)
    begin(tmp_path, "b", run=2)
    history = read_history(tmp_path)
    assert history is not None
    assert taken(history, "b") == item(1, run=2)


@pytest.mark.process
def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    begin(tmp_path)
    probe = (
        f"from pathlib import Path; from klein_cli.run.resume.manifest import opened\n"
        f"with opened(Path({str(tmp_path)!r})): print('in')"
    )
    with opened(tmp_path):
        with pytest.raises(UsageError, match="another run is writing into"), opened(tmp_path):
            pass
        other = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
        assert "another run is writing into" in other.stderr
    other = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert other.stdout == "in\n"


def test_a_torn_last_line_is_passed_over_and_cut_off(tmp_path: Path) -> None:
    begin(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole + b'{"kind":"picture","run":1,"ind')
    history = read_history(tmp_path)
    assert history is not None
    assert (history.progress(), history.damaged) == ((0, 2), 0)
    with opened(tmp_path) as manifest:
        manifest.made(item(1, recipe="r", sha256="s"), RECIPE, None)
    assert (
        (tmp_path / FILE).read_bytes().startswith(whole + b'{"kind":"picture","run":1,"index":1,')
    )
    assert lines(tmp_path)[-1]["seconds"] is None


def test_lines_that_make_no_sense_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    begin(tmp_path)
    damage = (
        b"\0\0\0\0\n"
        b"[1]\n"
        b'{"kind":"picture","run":1,"index":9,"file":"9.png","seed":1}\n'
        b'{"kind":"planned","run":1,"index":3,"row":"x","seed":1,"file":"../../x.png"}\n'
        b'{"kind":"planned","run":1,"index":3,"row":"x","seed":1,"file":"/x.png"}\n'
        b'{"kind":"planned","run":1,"index":3,"row":"x","seed":1,"file":"x.txt"}\n'
        b'{"kind":"picture","run":1,"index":1,"file":"1.png","seed":7,"recipe":"r","sha256":"s",'
        b'"width":16,"height":16,"steps":1,"seconds":1e999}\n'
        b'{"kind":"something newer"}\n'
    )
    with open(tmp_path / FILE, "ab") as file:
        file.write(damage)
    begin(tmp_path, "c", run=2)
    history = read_history(tmp_path)
    assert history is not None
    assert history.damaged == 7
    assert taken(history, "a") == item(1)
    assert sorted(history.files()) == ["1.png", "1.png", "2.png"]
    assert taken(history, "x") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"image": "1.png", "text": "a cat"}\n', "not a manifest of klein's"),
        (b"hello", "not a manifest of klein's"),
        (b"\n", "not a manifest of klein's"),
        (b'{"kind":"run","format":99,"run":1,"seed":1}\n', "newer klein"),
    ],
)
def test_a_file_of_somebody_elses_is_refused_and_left_alone(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_history(tmp_path)
    with pytest.raises(UsageError, match=message), opened(tmp_path) as manifest:
        manifest.history()
    assert (tmp_path / FILE).read_bytes() == content


def test_nothing_written_leaves_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / FILE).exists()
    assert os.listdir(tmp_path) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(ZeroDivisionError), opened(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == []


def test_there_is_no_history_where_there_is_no_manifest(tmp_path: Path) -> None:
    assert read_history(tmp_path) is None
    assert read_history(tmp_path / "nowhere") is None
    (tmp_path / FILE).touch()
    empty = read_history(tmp_path)
    assert empty is not None
    assert (empty.run, empty.next_index) == (0, 1)


def test_a_folder_that_cannot_be_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write in the folder"), opened(tmp_path / "file"):
        pass
    assert os.listdir(tmp_path) == ["file"]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two pages; mounting one takes privileges."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=8k tmpfs '{folder}' 2>/dev/null"):
        pytest.skip("cannot mount a small file system here")
    yield folder
    os.system(f"umount '{folder}'")


@pytest.mark.process
def test_a_full_disk_leaves_whole_lines(full_disk: Path) -> None:
    with opened(full_disk) as manifest:
        manifest.begin(1, model="tiny", seed=7)
        manifest.plan([("a", item(1))])
        before = (full_disk / FILE).read_bytes()
        with pytest.raises(OSError, match="No space left"):
            manifest.plan((str(index), item(index)) for index in range(2, 200))
        assert (full_disk / FILE).read_bytes() == before
        manifest.plan([("b", item(2))])
    history = read_history(full_disk)
    assert history is not None
    assert (history.progress(), history.damaged) == ((0, 2), 0)


def test_hashes(tmp_path: Path) -> None:
    # A hash that moved would have every picture made again after an update.
    assert recipe_hash(RECIPE) == (
        "fe98b9fa3ca40db60dff8d7da6a131bd2c0789afef0b71c5fa7ee585087d56c0"
    )
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")
