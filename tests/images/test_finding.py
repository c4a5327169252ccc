"""Images are found again by what they hold, wherever they went and whatever they are called."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from klein_cli.images import finding
from klein_cli.images.finding import find_images


def written(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return hashlib.sha256(content.encode()).hexdigest()


def test_images_are_found_by_content(tmp_path: Path) -> None:
    """Another image of that name is not the one that the record tells of."""
    wanted = {written(tmp_path / "in" / "renamed.jpg", "fox"): "fox.png"}
    written(tmp_path / "in" / "fox.png", "another fox")
    assert find_images(wanted, [tmp_path / "in"]) == {
        next(iter(wanted)): tmp_path / "in" / "renamed.jpg"
    }
    assert find_images({"0" * 64: "fox.png"}, [tmp_path / "in"]) == {}


def test_files_of_the_name_come_first_and_no_more_than_needed_are_read(
    tmp_path: Path,
) -> None:
    """A folder of ten thousand photographs holds the one that is wanted under its name."""
    digest = written(tmp_path / "z.png", "fox")
    written(tmp_path / "a.png", "fox")
    assert find_images({digest: "z.png"}, [tmp_path]) == {digest: tmp_path / "z.png"}


def test_below_is_looked_at_only_if_asked(tmp_path: Path) -> None:
    digest = written(tmp_path / "deep" / "down" / "fox.png", "fox")
    assert find_images({digest: "fox.png"}, [tmp_path]) == {}
    found = find_images({digest: "fox.png"}, [tmp_path], below=True)
    assert found == {digest: tmp_path / "deep" / "down" / "fox.png"}


def test_a_file_may_be_named_itself(tmp_path: Path) -> None:
    """An image of the wrong ending is one, if its name is told."""
    digest = written(tmp_path / "fox.data", "fox")
    assert find_images({digest: "fox.data"}, [tmp_path / "fox.data"])
    assert find_images({digest: "fox.png"}, [tmp_path / "fox.data"]) == {}


def test_hidden_files_and_pipes_are_passed_by(tmp_path: Path) -> None:
    """A pipe would hang, a hidden folder is none of ours."""
    digest = written(tmp_path / ".hidden" / "fox.png", "fox")
    written(tmp_path / ".fox.png", "fox")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    assert find_images({digest: "pipe.png"}, [tmp_path], below=True) == {}


def test_files_larger_than_any_image_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film of a hundred gigabytes would take minutes."""
    digest = written(tmp_path / "fox.png", "fox")
    monkeypatch.setattr(finding, "MAX_FILE_BYTES", 2)
    assert find_images({digest: "fox.png"}, [tmp_path]) == {}
