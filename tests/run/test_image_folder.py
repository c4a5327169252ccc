"""A folder of images: which of its files are edited, and what the results are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from given_images import photo

from klein_cli.errors import UsageError
from klein_cli.run.image_folder import check_apart, image_folder

pytestmark = pytest.mark.usefixtures("empty_folder")


def names(folder: str = "in", *, keep_format: bool = False) -> dict[str, str | None]:
    """Of each image, what its result is called."""
    rows = image_folder(Path(folder)).rows("a", (), keep_format=keep_format)
    return {Path((row.image or ("",))[0]).name: row.name for row in rows}


def test_each_image_gets_a_png_under_its_own_stem() -> None:
    for name in ("b.jpg", "a.png", "C.TIFF", "d.webp"):
        photo(f"in/{name}")
    wanted = {"a.png": "a.png", "b.jpg": "b.png", "C.TIFF": "C.png", "d.webp": "d.png"}
    assert names() == wanted
    assert list(names()) == list(wanted), "in the order of their names"


def test_a_format_that_klein_writes_is_kept_if_asked_for() -> None:
    for name in ("a.JPG", "b.tiff", "c.webp"):
        photo(f"in/{name}")
    assert names(keep_format=True) == {"a.JPG": "a.JPG", "b.tiff": "b.png", "c.webp": "c.webp"}


def test_images_of_one_stem_are_told_apart() -> None:
    """Else the second would replace the first, or one of them get a number that says nothing."""
    for name in ("a.jpg", "a.png", "b.png"):
        photo(f"in/{name}")
    assert names() == {"a.jpg": "a-jpg.png", "a.png": "a-png.png", "b.png": "b.png"}
    assert names(keep_format=True) == {"a.jpg": "a.jpg", "a.png": "a.png", "b.png": "b.png"}


def test_names_that_no_result_can_have_are_changed() -> None:
    """A control character is refused in the name of a result, and a number needs room."""
    long = "n" * 251
    for name in ("a\tb.jpg", f"{long}.png", f"{long}.jpg"):
        photo(f"in/{name}")
    found = names()
    assert found["a\tb.jpg"] == "a_b.png"
    for ending in (".png", ".jpg"):
        name = found[long + ending]
        assert name is not None
        assert set(Path(name).stem) == {"n"}
        assert 200 < len(name) < 250


def test_what_is_no_image_is_left_out_and_said() -> None:
    photo("in/a.png")
    photo("in/.hidden.png")
    photo("in/sub/deep.png")
    Path("in/notes.txt").write_text("x")
    folder = image_folder(Path("in"))
    assert [path.name for path in folder.images] == ["a.png"]
    assert sorted(folder.notes) == ["left out, folders: sub", "left out, no images: notes.txt"]


def test_links_that_leave_the_folder_are_not_followed() -> None:
    photo("in/a.png")
    photo("secret.png")
    os.symlink(Path("secret.png").resolve(), "in/out.png")
    os.symlink("a.png", "in/within.png")
    folder = image_folder(Path("in"))
    assert [path.name for path in folder.images] == ["a.png", "within.png"]
    assert folder.notes == ("left out, links to elsewhere: out.png",)


def test_what_cannot_be_read_is_not_left_out() -> None:
    """A HEIC file among photos is the user's image: it is refused by name later."""
    photo("in/a.png")
    Path("in/b.heic").write_bytes(b"x")
    assert list(names()) == ["a.png", "b.heic"]


def test_results_may_not_go_under_a_name_that_is_too_long_to_look_for() -> None:
    """The check of the place has no error of its own for it."""
    Path("in").mkdir()
    check_apart(Path("in"), Path("o" * 300, "p"))


def test_a_folder_without_images_is_refused() -> None:
    Path("in").mkdir()
    with pytest.raises(UsageError, match="in holds no images"):
        image_folder(Path("in"))


def test_further_images_follow_the_one_that_is_edited() -> None:
    photo("in/a.png")
    (row,) = image_folder(Path("in")).rows("a", ("style.png",), keep_format=False)
    assert row.image == ("in/a.png", "style.png")


@pytest.mark.parametrize("output", ["in", "in/", "in/sub/deeper", "./in/../in/x", "link/x"])
def test_results_never_go_into_the_folder_that_is_edited(output: str) -> None:
    """The next run would edit the results, and -y replace the originals."""
    Path("in").mkdir()
    os.symlink("in", "link")
    with pytest.raises(UsageError, match="lies in in"):
        check_apart(Path("in"), Path(output))


@pytest.mark.parametrize("output", ["out", "inside", ".", "other/in"])
def test_any_other_folder_will_do(output: str) -> None:
    Path("in").mkdir()
    check_apart(Path("in"), Path(output))
