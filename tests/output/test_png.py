"""Image files: lossless where promised, labelled, whole or not there at all."""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from numpy.typing import NDArray
from PIL import Image

from klein_cli.errors import KleinError, UsageError
from klein_cli.output import png
from klein_cli.output.png import check_room, check_writable, encode, save
from klein_cli.recipe import Recipe

RECORD = {"format": 1, "recipe": {"prompt": "a café"}}
PARAMETERS = "a café 猫\nSteps: 4"


@pytest.fixture
def pixels() -> NDArray[numpy.uint8]:
    return numpy.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=numpy.uint8)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def comment(data: bytes) -> object:
    written = opened(data).getexif().get_ifd(0x8769)[0x927C]
    assert written.startswith(b"klein\0")
    return json.loads(written[6:])


@pytest.mark.parametrize("extension", [".jpg", ".webp"])
def test_other_programs_find_the_parameters_in_the_comment(extension: str) -> None:
    """They look for UTF-16 in EXIF's UserComment: klein's own JSON was there, and nothing else."""
    data = encode(numpy.zeros((16, 16, 3), dtype=numpy.uint8), extension, RECORD, PARAMETERS)
    said = opened(data).getexif().get_ifd(0x8769)[0x9286]
    assert said.startswith(b"UNICODE\0")
    assert said[8:].decode("utf-16-be") == PARAMETERS


def test_a_jpeg_without_room_for_both_keeps_the_recipe() -> None:
    pixels, long = numpy.zeros((16, 16, 3), dtype=numpy.uint8), "x" * 40_000
    exif = opened(encode(pixels, ".jpg", {"long": long}, long)).getexif().get_ifd(0x8769)
    assert exif.keys() == {0x927C}
    exif = opened(encode(pixels, ".webp", {"long": long}, long)).getexif().get_ifd(0x8769)
    assert exif.keys() == {0x927C, 0x9286}


def test_png_is_lossless_and_carries_both_texts(pixels: NDArray[numpy.uint8]) -> None:
    image = opened(encode(pixels, ".PNG", RECORD, PARAMETERS))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (48, 32))
    assert numpy.array_equal(numpy.asarray(image), pixels)
    assert json.loads(image.text["klein"]) == RECORD
    assert image.text["parameters"] == PARAMETERS


def test_the_same_picture_gives_the_same_bytes(pixels: NDArray[numpy.uint8]) -> None:
    again = encode(pixels.copy(), ".png", RECORD, PARAMETERS)
    assert encode(pixels, ".png", RECORD, PARAMETERS) == again


@pytest.mark.parametrize(
    ("extension", "kind"), [(".jpg", "JPEG"), (".jpeg", "JPEG"), (".webp", "WEBP")]
)
def test_the_extension_chooses_the_format(extension: str, kind: str) -> None:
    smooth = numpy.zeros((32, 48, 3), dtype=numpy.uint8)
    smooth[:, 24:] = (220, 40, 40)
    data = encode(smooth, extension, RECORD, PARAMETERS)
    assert opened(data).format == kind
    assert comment(data) == RECORD
    difference = numpy.asarray(opened(data).convert("RGB")).astype(int) - smooth
    assert abs(difference).mean() < 2


def test_jpeg_keeps_full_colour_resolution(pixels: NDArray[numpy.uint8]) -> None:
    image = opened(encode(pixels, ".jpg", RECORD, PARAMETERS))
    assert {layer[1:3] for layer in image.layer} == {(1, 1)}  # type: ignore[attr-defined]


def test_a_record_too_long_for_jpeg_is_an_error_and_not_a_bug(
    pixels: NDArray[numpy.uint8],
) -> None:
    long = {"prompt": "x" * 70_000}
    with pytest.raises(KleinError, match="too long for a JPEG"):
        encode(pixels, ".jpg", long, PARAMETERS)
    assert comment(encode(pixels, ".webp", long, PARAMETERS)) == long


def test_a_prompt_too_long_for_jpeg_is_known_beforehand() -> None:
    def recipe(prompt: str) -> Recipe:
        return Recipe(
            prompt=prompt, seed=1, width=16, height=16, steps=1, guidance=1.0, model="tiny"
        )

    with pytest.raises(UsageError, match="does not fit in a JPEG"):
        check_room(recipe("猫" * 12_000), ".jpg")
    check_room(recipe("猫" * 9_000), ".jpg")
    check_room(recipe("猫" * 12_000), ".png")


def test_save_makes_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "cat.png"
    save(b"picture", path, overwrite=False)
    assert path.read_bytes() == b"picture"
    assert os.listdir(path.parent) == ["cat.png"]


def test_save_respects_the_umask(tmp_path: Path) -> None:
    # tempfile's own files are readable by their owner alone, and a rename would keep that.
    old = os.umask(0o022)
    try:
        save(b"picture", tmp_path / "cat.png", overwrite=False)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "cat.png").stat().st_mode) == 0o644


def test_save_never_replaces_a_file_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        save(b"new", path, overwrite=False)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["cat.png"]


def test_save_replaces_a_file_when_told_to(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"old")
    save(b"new", path, overwrite=True)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["cat.png"]


def test_overwriting_a_link_leaves_its_target_alone(tmp_path: Path) -> None:
    (tmp_path / "original").write_bytes(b"old")
    (tmp_path / "cat.png").symlink_to("original")
    save(b"new", tmp_path / "cat.png", overwrite=True)
    assert (tmp_path / "original").read_bytes() == b"old"
    assert (tmp_path / "cat.png").read_bytes() == b"new"


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk such as exFAT, which has no hard links."""

    def link(source: object, target: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(png.os, "link", link)


@pytest.mark.usefixtures("without_links")
def test_save_works_without_hard_links(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    save(b"picture", path, overwrite=False)
    assert path.read_bytes() == b"picture"
    with pytest.raises(FileExistsError):
        save(b"new", path, overwrite=False)
    assert path.read_bytes() == b"picture"
    assert os.listdir(tmp_path) == ["cat.png"]


def test_save_into_a_file_is_no_taken_name(tmp_path: Path) -> None:
    # FileExistsError would send the runner looking for another name for ever.
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        save(b"picture", tmp_path / "file" / "cat.png", overwrite=False)


def test_an_interrupted_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(png.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(b"picture", tmp_path / "cat.png", overwrite=False)
    assert os.listdir(tmp_path) == []


def test_the_data_is_on_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cat.png"
    synced = []

    def fsync(handle: int) -> None:
        synced.append((os.fstat(handle).st_ino, path.exists()))

    monkeypatch.setattr(png.os, "fsync", fsync)
    save(b"picture", path, overwrite=False)
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB; mounting one takes privileges."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=64k tmpfs '{folder}' 2>/dev/null"):
        pytest.skip("cannot mount a small file system here")
    yield folder
    os.system(f"umount '{folder}'")


@pytest.mark.process
def test_a_full_disk_is_an_error_and_leaves_nothing(full_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        save(bytes(100_000), full_disk / "cat.png", overwrite=False)
    assert os.listdir(full_disk) == []


def test_check_writable_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path) == []


def test_check_writable_refuses_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="Not a directory"):
        check_writable(tmp_path / "file" / "folder")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc on this system")
def test_check_writable_tries_rather_than_asks() -> None:
    # os.access tells root that it may.
    with pytest.raises(UsageError, match="cannot write in the folder /proc"):
        check_writable(Path("/proc"))


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_check_writable_refuses_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        check_writable(tmp_path)
    tmp_path.chmod(0o700)
