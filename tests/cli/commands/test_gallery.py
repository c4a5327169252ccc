"""`klein gallery`, and `klein generate --gallery`: when there is a page, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from klein_cli.cli.app import main

MAKE = ["generate", "a cat", "--size", "32x32", "--device", "cpu", "--steps", "1"]


def run(
    arguments: list[str], capfd: pytest.CaptureFixture[str], expected: int = 0
) -> tuple[str, str]:
    assert main(arguments) == expected
    said = capfd.readouterr()
    return said.out, said.err


def test_a_run_leaves_a_page_of_all_that_lies_in_its_folder(
    random_snapshot: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run that goes on where another stopped shows the images of both."""
    folder = tmp_path / "out"
    options = ["-m", random_snapshot, "-o", f"{folder}/", "--gallery"]
    run([*MAKE, *options, "-s", "1", "-n", "2"], capfd)
    out, err = run([*MAKE, *options, "-s", "9"], capfd)
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert page.count('class="recipe"') == 3
    assert f"gallery: {folder}/index.html (3 images)" in err
    assert "index.html" not in out


def test_under_json_the_page_is_an_event(
    random_snapshot: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["-m", random_snapshot, "-o", f"{tmp_path}/out/", "--gallery", "--json"]
    out, _ = run([*MAKE, *options, "-s", "1"], capfd)
    assert json.loads(out.splitlines()[-1]) == {
        "event": "gallery",
        "path": f"{tmp_path}/out/index.html",
        "pictures": 1,
    }


@pytest.mark.parametrize("output", [[], ["-o", "a.png"], ["-o", "-"], ["-o", "{slug}.png"]])
def test_a_page_of_wherever_klein_runs_is_refused(
    output: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Without a folder of its own the page would show whatever lies below, a home folder maybe."""
    monkeypatch.chdir(tmp_path)
    _, err = run(["generate", "a", "-m", "tiny", "--gallery", *output], capfd, 2)
    assert err.startswith("error: --gallery needs a folder of its own\nhint: ")
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_not_kleins_is_kept_and_said_before_anything_is_drawn(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.html").write_text("mine")
    _, err = run(["generate", "a", "-m", "tiny", "--gallery", "-o", f"{tmp_path}/"], capfd, 2)
    assert "klein did not make it" in err
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_dry_run_writes_no_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = f"{tmp_path}/out/"
    run(["generate", "a", "-m", "tiny", "--gallery", "-o", folder, "--dry-run"], capfd)
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_a_folder_is_made_by_itself(
    random_snapshot: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run([*MAKE, "-m", random_snapshot, "-o", f"{tmp_path}/", "-s", "1"], capfd)
    (tmp_path / "broken.png").write_bytes(b"")
    out, err = run(["gallery", str(tmp_path)], capfd)
    assert out == f"{tmp_path}/index.html\n"
    assert err == f"warning: cannot be read: {tmp_path}/broken.png\n"


def test_a_folder_that_is_not_there_is_an_event_too(capfd: pytest.CaptureFixture[str]) -> None:
    out, err = run(["gallery", "no-such-folder", "--json"], capfd, 2)
    assert json.loads(out)["event"] == "error"
    assert err.startswith("error: there is no folder no-such-folder\nhint: ")
    assert run(["gallery", "n" * 300], capfd, 2)[1].startswith("error: there is no folder nnn")


def test_a_page_that_fails_does_not_hide_how_the_run_ended(
    random_snapshot: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("klein_cli.cli.terminal.follow.RunReporter.follow", lambda *_: 4)
    run([*MAKE, "-m", random_snapshot, "-o", f"{tmp_path}/none/", "--gallery"], capfd, expected=4)


def test_images_that_edits_were_made_from_must_be_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A folder that was spelt wrong would leave a page without them, and nobody would know why."""
    _, err = run(["gallery", str(tmp_path), "--images", str(tmp_path / "photo")], capfd, 2)
    assert err.startswith(f"error: --images: there is no {tmp_path}/photo\nhint: ")
