"""A run's images by digest: where they are, what stays decoded, and that they have not changed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy
import pytest
from given_images import edit_of
from image_files import encoded

from klein_cli.errors import UsageError
from klein_cli.images import store as module
from klein_cli.images.reading import read
from klein_cli.images.references import prepare
from klein_cli.images.store import ImageStore
from klein_cli.recipe import Mask, Recipe, Reference

RANDOM = numpy.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (70, 96, 3), dtype=numpy.uint8)


def written(path: Path, **options: object) -> Path:
    path.write_bytes(encoded(RANDOM.integers(0, 256, (70, 96, 3), dtype=numpy.uint8), **options))
    return path


def count_of_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are decoded from now on."""
    names: list[str] = []
    read = module.read

    def counted(source: object, *, name: str) -> object:
        names.append(name)
        return read(source, name=name)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read", counted)
    return names


def test_an_image_is_taken_in_without_decoding_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans of forty thousand images name them all."""
    reads = count_of_reads(monkeypatch)
    store = ImageStore()
    found = store.add(written(tmp_path / "a.png"))
    assert reads == []
    assert (found.name, found.width, found.height) == ("a.png", 96, 70)
    assert store.source(found.sha256) == tmp_path / "a.png"
    assert store.name(found.sha256) == "a.png"


def test_an_image_is_decoded_once_while_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = count_of_reads(monkeypatch)
    store = ImageStore(decoded_bytes=2 * COLOURS.nbytes)
    digests = [store.add(written(tmp_path / f"{name}.png")).sha256 for name in "abc"]
    for digest in (0, 1, 0, 1, 0):
        store.picture(digests[digest])
    assert reads == ["a.png", "b.png"]
    store.picture(digests[2])  # b.png is the one that was not asked for longest
    store.picture(digests[0])
    assert reads == ["a.png", "b.png", "c.png"]
    store.picture(digests[1])
    assert reads == ["a.png", "b.png", "c.png", "b.png"]


def test_the_last_image_stays_however_large_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = count_of_reads(monkeypatch)
    store = ImageStore(decoded_bytes=1)
    digest = store.add(written(tmp_path / "a.png")).sha256
    assert store.picture(digest) is store.picture(digest)
    assert reads == ["a.png"]


def test_a_file_that_changed_is_not_taken_for_what_it_was(tmp_path: Path) -> None:
    """An image would be drawn from another reference than its record tells."""
    store = ImageStore()
    path = written(tmp_path / "a.png")
    digest = store.add(path).sha256
    written(path)
    with pytest.raises(UsageError, match=r"a\.png has changed"):
        store.picture(digest)
    os.unlink(path)
    with pytest.raises(UsageError, match="cannot read"):
        store.picture(digest)


def test_the_bytes_of_standard_input_are_kept(tmp_path: Path) -> None:
    """They cannot be read again."""
    store, data = ImageStore(), encoded(COLOURS)
    digest = store.add(data, name="standard input").sha256
    assert (store.picture(digest).rgb == COLOURS).all()
    other = ImageStore()
    other.put(digest, store.source(digest), name=store.name(digest))
    assert (other.picture(digest).rgb == COLOURS).all()


def test_one_content_is_one_image_whatever_its_name(tmp_path: Path) -> None:
    store = ImageStore()
    first = store.add(written(tmp_path / "a.png"))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    second = store.add(tmp_path / "b.png")
    assert first.sha256 == second.sha256
    assert store.picture(first.sha256) is store.picture(second.sha256)


def recipe(reference: Reference, width: int, height: int, mask: Mask | None = None) -> Recipe:
    return Recipe(
        prompt="a fox",
        seed=1,
        width=width,
        height=height,
        steps=4,
        guidance=1.0,
        model="tiny",
        references=(reference,),
        mask=mask,
    )


def test_a_reference_is_that_of_its_recipe_or_refused(tmp_path: Path) -> None:
    """A record may tell any size: the model must see the one that the file gives."""
    store = ImageStore()
    digest = store.add(written(tmp_path / "a.png")).sha256
    right = Reference(sha256=digest, name="a.png", width=96, height=64)
    assert (store.reference(right) == store.picture(digest).rgb[3:67]).all()
    with pytest.raises(UsageError, match="96x64"):
        store.reference(Reference(sha256=digest, name="a.png", width=96, height=96))


def test_the_source_of_a_recipe_with_a_mask(tmp_path: Path) -> None:
    store = ImageStore()
    source = store.add(written(tmp_path / "a.png"))
    white = numpy.zeros((70, 96), dtype=numpy.uint8)
    white[10:20, 30:40] = 255
    mask = store.add(encoded(white), name="mask.png")
    reference = Reference(sha256=source.sha256, name="a.png", width=96, height=64)
    told = Mask(sha256=mask.sha256, name="mask.png", box=(0, 0, 96, 70))
    masked = store.masked(recipe(reference, 96, 64, told))
    assert masked.white.sum() == 100
    assert masked.painted_size == (96, 64)
    with pytest.raises(UsageError, match="128x64"):
        store.masked(recipe(reference, 128, 64, told))
    grown = Mask(expand=(0, 0, 32, 0), box=(0, 0, 128, 70))
    assert store.masked(recipe(reference, 128, 64, grown)).white.shape == (70, 128)
    part = Mask(sha256=mask.sha256, name="mask.png", box=(16, 0, 80, 64))
    assert store.masked(recipe(reference, 64, 64, part)).box == (16, 0, 80, 64)


def edit_in(store: ImageStore, path: Path) -> Recipe:
    probe = store.add(path)
    given = Reference(sha256=probe.sha256, name=probe.name, width=96, height=64)
    return edit_of(given)


def test_what_is_read_ahead_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of photos would wait for each to be decoded, as long as to be drawn."""
    store = ImageStore()
    recipe = edit_in(store, written(tmp_path / "a.png"))
    names = count_of_reads(monkeypatch)
    store.read_ahead([recipe, recipe])
    assert store._ahead is not None
    store._ahead.join()
    assert names == ["a.png"]
    pixels = store.reference(recipe.references[0])
    assert names == ["a.png"]
    assert numpy.array_equal(pixels, prepare(read(tmp_path / "a.png")))


def test_who_needs_one_image_does_not_wait_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore()
    here, ahead = (edit_in(store, written(tmp_path / name)) for name in ("a.png", "b.png"))
    store.reference(here.references[0])
    let_go, begun, read = threading.Event(), threading.Event(), module.read

    def slowly(source: object, *, name: str) -> object:
        begun.set()
        assert let_go.wait(20)
        return read(source, name=name)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read", slowly)
    store.read_ahead([ahead])
    assert begun.wait(20)
    store.reference(here.references[0])
    let_go.set()
    assert store._ahead is not None
    store._ahead.join()


def test_a_fault_that_is_met_ahead_shows_when_the_image_is_needed(tmp_path: Path) -> None:
    store = ImageStore()
    recipe = edit_in(store, written(tmp_path / "a.png"))
    os.remove(tmp_path / "a.png")
    store.read_ahead([recipe])
    assert store._ahead is not None
    store._ahead.join()
    with pytest.raises(UsageError, match="cannot read"):
        store.reference(recipe.references[0])
