"""What rows name becomes digests and sizes: each file read once, and every fault the row's."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from given_images import input_images, mask, photo, transparent
from listening import Heard

import klein_cli.images.store
from klein_cli.errors import UsageError
from klein_cli.images.store import ImageStore
from klein_cli.presets import presets
from klein_cli.prompts.rows import Defaults, Inputs, Row
from klein_cli.run.inputs import ImageNotes, InputImages

pytestmark = pytest.mark.usefixtures("empty_folder")

DEFAULTS = Defaults(preset=presets()["klein-4b"])


def sha256(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def found(row: Row, defaults: Defaults = DEFAULTS, folder: str = "") -> Inputs:
    return input_images(Path(folder)).of(row, defaults)


def test_an_image_is_known_by_its_bytes_and_seen_at_a_multiple_of_16() -> None:
    photo("a.png", 100, 75)
    (reference,) = found(Row(prompt="a", image=("a.png",))).references
    assert (reference.sha256, reference.name) == (sha256("a.png"), "a.png")
    assert (reference.width, reference.height) == (96, 64)


def test_a_row_looks_from_its_file_and_the_options_from_here() -> None:
    """A prompts file can be moved with its images; -i is typed where the user stands."""
    photo("sub/a.png", seed=1)
    photo("a.png", seed=2)
    of_row = found(Row(prompt="a", image=("a.png",)), folder="sub")
    of_options = found(Row(prompt="a"), replace(DEFAULTS, image=("a.png",)), folder="sub")
    assert of_row.references[0].sha256 == sha256("sub/a.png")
    assert of_options.references[0].sha256 == sha256("a.png")


def test_a_rows_images_replace_those_of_the_options() -> None:
    photo("a.png", seed=1)
    photo("b.png", seed=2)
    both = replace(DEFAULTS, image=("a.png", "b.png"))
    assert len(found(Row(prompt="a"), both).references) == 2
    (only,) = found(Row(prompt="a", image=("b.png",)), both).references
    assert only.name == "b.png"
    assert found(Row(prompt="a", image=()), both).references == ()


def test_ten_thousand_rows_that_share_an_image_read_it_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To hash it for each row would take hours."""
    photo("a.png")
    read: list[object] = []
    probe = klein_cli.images.store.probe
    monkeypatch.setattr(
        "klein_cli.images.store.probe", lambda *of, **told: read.append(of) or probe(*of, **told)
    )
    images = input_images()
    rows = (Row(prompt="a", line=k, image=("a.png",)) for k in range(10_000))
    assert len({images.of(row, DEFAULTS) for row in rows}) == 1
    assert len(read) == 1


def test_standard_input_is_read_once_and_has_no_path() -> None:
    photo("a.png")
    images = input_images(stdin=Path("a.png").read_bytes())
    first, again = (images.of(Row(prompt="a", image=("-",)), DEFAULTS) for _ in range(2))
    assert first == again
    assert first.references[0].sha256 == sha256("a.png")
    assert isinstance(images.store.source(sha256("a.png")), bytes)


def test_standard_input_that_holds_the_prompts_is_no_image() -> None:
    images = InputImages(ImageStore(), folder=Path(), stdin=None)
    with pytest.raises(UsageError, match="standard input holds the prompts"):
        images.of(Row(prompt="a", image=("-",)), DEFAULTS)


def test_a_folder_is_no_image_and_there_is_a_command_for_it() -> None:
    photo("in/a.png")
    with pytest.raises(UsageError, match="in is a folder") as caught:
        found(Row(prompt="a", image=("in",)))
    assert "klein edit in " in caught.value.hint


def test_too_many_images_are_refused_and_many_are_known() -> None:
    photo("a.png")
    images = input_images()
    images.of(Row(prompt="a", image=("a.png",) * 5), DEFAULTS)
    assert images.most == 5
    with pytest.raises(UsageError, match="11 images are given"):
        images.of(Row(prompt="a", image=("a.png",) * 11), DEFAULTS)


def test_a_missing_image_is_named() -> None:
    with pytest.raises(UsageError, match=r"cannot read the image nix\.png"):
        found(Row(prompt="a", image=("nix.png",)))


def test_a_mask_without_an_image_is_refused() -> None:
    """Else it would be given and ignored."""
    for row in (Row(prompt="a", mask="m.png"), Row(prompt="a", expand=(8, 0, 0, 0))):
        with pytest.raises(UsageError, match="and no image"):
            found(row)


def test_a_masked_image_is_painted_at_its_own_size() -> None:
    photo("a.png")
    mask("m.png", (10, 10, 20, 20))
    inputs = found(
        Row(prompt="a", image=("a.png",), mask="m.png"), replace(DEFAULTS, keep=False, blur=3)
    )
    assert inputs.mask is not None
    assert (inputs.mask.sha256, inputs.mask.name) == (sha256("m.png"), "m.png")
    assert (inputs.mask.box, inputs.mask.keep, inputs.mask.blur) == ((0, 0, 96, 64), False, 3)
    assert (inputs.references[0].width, inputs.references[0].height) == (96, 64)


def test_alpha_is_a_mask_and_a_file_of_that_name_needs_a_folder() -> None:
    transparent("a.png")
    inputs = found(Row(prompt="a", image=("a.png",), mask="alpha"))
    assert inputs.mask is not None
    assert (inputs.mask.alpha, inputs.mask.sha256) == (True, None)


def test_what_is_added_counts_in_the_size_that_is_painted() -> None:
    photo("a.png")
    inputs = found(Row(prompt="a", image=("a.png",), expand=(0, 0, 33, 16)))
    assert inputs.mask is not None
    assert inputs.mask.box == (0, 0, 129, 80)
    assert (inputs.references[0].width, inputs.references[0].height) == (128, 80)


def test_a_mask_of_another_size_is_the_rows_fault() -> None:
    photo("a.png")
    mask("m.png", (0, 0, 9, 9), width=64)
    with pytest.raises(UsageError, match=r"the mask m\.png is 64x64, and a\.png is 96x64"):
        found(Row(prompt="a", image=("a.png",), mask="m.png"))


@pytest.mark.skipif(os.name == "nt", reason="such names are those of other systems")
def test_any_file_name_can_be_recorded() -> None:
    """Else klein could not read the record in its own image."""
    photo("a.png")
    strange = os.fsdecode(b"caf\xe9\\a.png")
    os.rename("a.png", strange)
    inputs = found(Row(prompt="a", image=(strange,)))
    assert inputs.references[0].name == "caf?_a.png"


def test_each_reference_is_described() -> None:
    photo("a.png", 100, 75)
    images = input_images()
    images.of(Row(prompt="a", image=("a.png",)), DEFAULTS)
    assert list(images.described()) == ["a.png: 100x75, seen as 96x64, 24 tokens"]


def test_many_notes_of_a_kind_are_told_a_few_times() -> None:
    """A phone's photos are all in Display P3: a thousand lines of it hide what matters."""
    heard = Heard()
    notes = ImageNotes(heard)
    notes.tell([(f"{k}.png", f"{k}.png is transparent in places") for k in range(9)])
    notes.tell([("0.png", "0.png is transparent in places"), ("0.png", "0.png is CMYK")])
    kinds = [kind for kind, _ in heard.said]
    assert kinds == ["note"] * 3 + ["detail"] * 6 + ["note"]
    assert heard.said[-1] == ("note", "0.png is CMYK")
    assert len(heard.events) == 10, "a program hears of each"
