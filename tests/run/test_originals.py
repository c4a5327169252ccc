"""Where the images of a recipe are looked for, and that only their own bytes will do."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from given_images import edit_of, mask, photo

from klein_cli.errors import UsageError
from klein_cli.presets import presets
from klein_cli.prompts.rows import Defaults
from klein_cli.recipe import Mask, Recipe, Reference
from klein_cli.run.originals import Found, Originals, edited_again

pytestmark = pytest.mark.usefixtures("empty_folder")

IMAGE = Path("made/x.png")
"""What is to be made again."""


def reference(path: Path | str) -> Reference:
    path = Path(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Reference(sha256=digest, name=path.name, width=96, height=64)


def test_words_that_are_no_file_are_named_and_refused() -> None:
    """Asking whether there is a file of so long a name is an error of its own."""
    photo("in/a.png")
    recipe = edit_of(reference("in/a.png"))
    found = Originals(["a name " * 50], None, [recipe]).of(recipe, IMAGE)
    assert found.others == ("a name " * 50,)


def found(recipe: Recipe, *named: str, masked: str | None = None) -> Found:
    return Originals(named, masked, [recipe]).of(recipe, IMAGE)


def test_an_image_is_found_beside_the_one_made_of_it_and_here() -> None:
    recipe = edit_of(reference(photo("a.png", seed=1)), reference(photo("b.png", seed=2)))
    Path("made").mkdir()
    shutil.move("a.png", "made/a.png")
    assert found(recipe).image == ("made/a.png", "b.png")


def test_another_image_of_the_name_is_passed_over() -> None:
    """Else a stranger's recipe would edit whatever of the user's is called photo.jpg."""
    recipe = edit_of(reference(photo("a.png", seed=1)))
    photo("made/a.png", seed=9)
    assert found(recipe).image == ("a.png",)
    os.remove("a.png")
    with pytest.raises(UsageError, match=r"made/a\.png is another image than the one") as caught:
        found(recipe)
    assert "-i FILE" in caught.value.hint


def test_a_folder_or_a_renamed_file_can_be_named() -> None:
    recipe = edit_of(reference(photo("a.png")))
    photo("photos/a.png")
    os.remove("a.png")
    assert found(recipe, "photos").image == ("photos/a.png",)
    os.rename("photos/a.png", "renamed.png")
    assert found(recipe, "renamed.png") == Found(image=("renamed.png",), mask=None)


def test_an_image_that_was_renamed_where_it_lay_is_found() -> None:
    recipe = edit_of(reference(photo("a.png")))
    os.rename("a.png", "other name.png")
    assert found(recipe).image == ("other name.png",)


def test_files_are_found_in_any_order() -> None:
    recipe = edit_of(reference(photo("a.png", seed=1)), reference(photo("b.png", seed=2)))
    os.rename("a.png", "c.png")
    assert found(recipe, "b.png", "c.png").image == ("c.png", "b.png")


def test_another_image_takes_the_first_place_and_is_said() -> None:
    recipe = edit_of(reference(photo("a.png", seed=1)), reference(photo("b.png", seed=2)))
    photo("new.png", seed=3)
    assert found(recipe, "new.png") == Found(
        image=("new.png", "b.png"), mask=None, others=("new.png",)
    )


def test_a_file_for_another_recipe_is_no_variation_of_this() -> None:
    """`reproduce *.png -i one.jpg -i two.jpg`, each made of one of them."""
    one, two = (edit_of(reference(photo(f"{k}.png", seed=k))) for k in range(2))
    for k in range(2):
        os.rename(f"{k}.png", f"moved{k}.png")
    originals = Originals(["moved0.png", "moved1.png"], None, [one, two])
    assert originals.of(one, IMAGE) == Found(image=("moved0.png",), mask=None)
    assert originals.of(two, IMAGE) == Found(image=("moved1.png",), mask=None)


def test_a_mask_is_found_too_and_another_is_said() -> None:
    digest = reference(mask("m.png", (0, 0, 9, 9))).sha256
    masked = Mask(sha256=digest, name="m.png", box=(0, 0, 96, 64))
    recipe = edit_of(reference(photo("a.png")), mask=masked)
    assert found(recipe).mask == "m.png"
    mask("n.png", (5, 5, 9, 9))
    assert found(recipe, masked="n.png").others == ("n.png",)
    assert found(recipe, masked="m.png").others == ()


@pytest.mark.timeout(20)
def test_a_pipe_a_folder_and_a_device_are_not_read() -> None:
    """They would never end, or hang."""
    recipe = edit_of(reference(photo("a.png")))
    os.remove("a.png")
    os.mkfifo("a.png")
    with pytest.raises(UsageError, match=r"a\.png is not here, that made/x\.png was made of"):
        found(recipe)


def test_a_file_larger_than_any_image_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = edit_of(reference(photo("a.png")))
    monkeypatch.setattr("klein_cli.images.finding.MAX_FILE_BYTES", 10)
    with pytest.raises(UsageError, match="is not here"):
        found(recipe)


def test_a_name_never_leaves_the_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    photo("sub/a.png")
    digest = reference("sub/a.png").sha256
    for name in ("..", ".", ""):
        recipe = edit_of(Reference(sha256=digest, name=name, width=96, height=64))
        with pytest.raises(UsageError, match="is not here"):
            found(recipe)


def test_a_masked_edit_keeps_the_images_size_and_what_the_recipe_says_of_the_mask() -> None:
    masked = Mask(alpha=True, expand=(0, 0, 8, 0), box=(0, 0, 96, 64), blur=4, keep=False)
    recipe = edit_of(reference(photo("a.png")), mask=masked)
    defaults = Defaults(preset=presets()["tiny"])
    defaults, row = edited_again(recipe, found(recipe), defaults, prompt=None)
    assert (row.image, row.mask, row.expand) == (("a.png",), "alpha", (0, 0, 8, 0))
    assert (row.width, row.height) == (None, None)
    assert (defaults.keep, defaults.blur) == (False, 4)
