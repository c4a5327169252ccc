"""Reading an image's recipe back: exactly what was written, and nothing a stranger slips in."""

from __future__ import annotations

import json
import os
import resource
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image, PngImagePlugin
from records import record

from klein_cli import __version__
from klein_cli.errors import UsageError
from klein_cli.images.files import MAX_FILE_BYTES
from klein_cli.output.metadata import parameters
from klein_cli.output.png import encode
from klein_cli.output.reading import MAX_RECORD_BYTES, read_pixels, read_record
from klein_cli.recipe import MAX_PROMPT, Adapter, Mask, PartFile, Recipe, Reference
from klein_cli.settings import Settings

RECIPE = Recipe(
    prompt='a "café"\nat night \x1b[31m',
    seed=2**62,
    width=64,
    height=32,
    steps=4,
    guidance=4.5,
    model="tiny",
    negative_prompt="rain",
)
SETTINGS = Settings(device="cpu", dtype="float32", attention="sdpa")
COMMIT, WEIGHTS = "ab" * 20, "0123456789abcdef" * 2
WRITTEN = record(
    RECIPE,
    SETTINGS,
    repo="owner/name",
    revision=COMMIT,
    weights=WEIGHTS,
    provenance={"torch": "2.13"},
    step_down="alone",
) | {"sigmas": [1.0, 0.75, 0.5, 0.25, 0.0]}
# What klein wrote before its records had sigmas and weights.
FORMAT_1 = {
    "format": 1,
    "klein": "0.1.0",
    "recipe": {
        "prompt": "a red circle",
        "seed": 1,
        "width": 256,
        "height": 256,
        "steps": 4,
        "guidance": 1.0,
        "model": "tiny",
        "negative_prompt": None,
    },
    "settings": {
        "device": "cpu",
        "dtype": "float32",
        "attention": "sdpa",
        "engine": "native",
        "rng": "cpu",
    },
    "model": {"name": "tiny", "revision": None},
    "provenance": {"klein": "0.1.0", "torch": "2.13.0+cpu", "threads": "2"},
}


def png(path: Path, text: str) -> Path:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("klein", text)
    Image.new("RGB", (16, 16)).save(path, pnginfo=chunks)
    return path


def changed(**entries: Any) -> str:
    return json.dumps({**WRITTEN, **entries})


@pytest.mark.parametrize("extension", [".jpg", ".webp"])
def test_the_comment_of_klein_0_1_is_read_still(extension: str, tmp_path: Path) -> None:
    """It held the record itself, in ASCII."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + json.dumps(WRITTEN).encode()
    path = tmp_path / f"old{extension}"
    Image.new("RGB", (16, 16)).save(path, exif=exif)
    assert read_record(path).recipe.prompt == WRITTEN["recipe"]["prompt"]


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp"])
def test_every_format_gives_the_record_back(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    pixels = numpy.zeros((32, 64, 3), dtype=numpy.uint8)
    path.write_bytes(encode(pixels, extension, WRITTEN, parameters(RECIPE)))
    found = read_record(path)
    assert found.recipe == RECIPE
    assert found.settings == SETTINGS
    assert (found.format, found.klein, found.step_down) == (2, __version__, "alone")
    assert (found.repo, found.revision, found.weights) == ("owner/name", COMMIT, WEIGHTS)
    assert found.sigmas == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert found.provenance == {"torch": "2.13"}
    assert found.unknown == ()


GIVEN = {
    "references": [{"sha256": WEIGHTS * 2, "name": "photo.jpg", "width": 64, "height": 32}],
    "mask": {"sha256": WEIGHTS * 2, "name": "mask.png", "box": [0, 0, 60, 30]},
    "adapters": [{"sha256": WEIGHTS * 2, "name": "style.safetensors", "weight": 1}],
}
PART = {"part": "vae", "name": "small.safetensors", "weights": WEIGHTS, "kind": "bf16"}


def test_what_was_given_is_read_again(tmp_path: Path) -> None:
    """Format 3, which only such images have."""
    recipe = replace(
        RECIPE,
        references=(Reference(sha256=WEIGHTS * 2, name="photo.jpg", width=64, height=32),),
        mask=Mask(sha256=WEIGHTS * 2, name="mask.png", box=(0, 0, 60, 30)),
        adapters=(Adapter(sha256=WEIGHTS * 2, name="style.safetensors", weight=1.0),),
    )
    part = PartFile(part="vae", name="small.safetensors", weights=WEIGHTS, kind="bf16")
    written = record(recipe, SETTINGS, parts=(part,), provenance={})
    assert written["format"] == 3
    found = read_record(png(tmp_path / "a.png", json.dumps(written)))
    assert found.recipe == recipe
    assert found.recipe.references[0].name == "photo.jpg"
    assert found.parts == (part,)
    assert json.loads(json.dumps(found.table()))["parts"] == [PART]


@pytest.mark.parametrize(
    "recipe",
    [
        {"references": "photo.jpg"},
        {"references": [["photo.jpg"]]},
        {"references": [{**GIVEN["references"][0], "sha256": "../../etc/passwd"}]},
        {"references": [{**GIVEN["references"][0], "name": "../secret.png"}]},
        {"references": [{**GIVEN["references"][0], "name": "\ud800"}]},
        {"references": GIVEN["references"] * 11},
        {"references": [{"sha256": WEIGHTS * 2}]},
        {"references": [], "mask": GIVEN["mask"]},
        {**GIVEN, "mask": {**GIVEN["mask"], "box": [0, 0, 60]}},
        {**GIVEN, "mask": {**GIVEN["mask"], "box": [0, 0, "60", 30]}},
        {"adapters": [{**GIVEN["adapters"][0], "weight": 1e9}]},
    ],
)
def test_given_files_that_make_no_sense_are_no_recipe(
    tmp_path: Path, recipe: dict[str, object]
) -> None:
    text = changed(format=3, recipe={**WRITTEN["recipe"], **recipe})
    with pytest.raises(UsageError, match="is not valid"):
        read_record(png(tmp_path / "a.png", text))


@pytest.mark.parametrize("parts", ["vae", [PART] * 101, [{**PART, "weights": "/etc"}], [{}]])
def test_parts_that_make_no_sense_are_no_recipe(tmp_path: Path, parts: object) -> None:
    text = changed(format=3, model={**WRITTEN["model"], "parts": parts})
    with pytest.raises(UsageError, match="is not valid"):
        read_record(png(tmp_path / "a.png", text))


def test_what_a_later_klein_says_of_a_reference_is_named(tmp_path: Path) -> None:
    told = {**GIVEN["references"][0], "crop": "left"}
    text = changed(format=3, recipe={**WRITTEN["recipe"], "references": [told]})
    assert read_record(png(tmp_path / "a.png", text)).unknown == ("recipe.references.crop",)


def test_an_older_format_leaves_empty_what_it_did_not_know(tmp_path: Path) -> None:
    found = read_record(png(tmp_path / "a.png", json.dumps(FORMAT_1)))
    assert found.format == 1
    assert found.recipe == Recipe(**FORMAT_1["recipe"])  # type: ignore[arg-type]
    assert found.settings == SETTINGS
    assert (found.repo, found.weights, found.sigmas) == (None, None, ())


def test_a_setting_that_was_not_known_then_has_its_default(tmp_path: Path) -> None:
    settings = {key: value for key, value in WRITTEN["settings"].items() if key != "rng"}
    assert read_record(png(tmp_path / "a.png", changed(settings=settings))).settings == SETTINGS


def test_what_this_klein_does_not_know_is_named(tmp_path: Path) -> None:
    """Silence would promise the same image from half of its recipe."""
    text = changed(
        recipe={**WRITTEN["recipe"], "strength": 0.5}, settings={**WRITTEN["settings"], "tiles": 4}
    )
    found = read_record(png(tmp_path / "a.png", text))
    assert found.unknown == ("recipe.strength", "settings.tiles")
    assert found.recipe == RECIPE


def test_a_setting_of_a_later_klein_is_shown_and_not_used(tmp_path: Path) -> None:
    """`klein info` can show it; whoever would compute with it is told."""
    text = changed(settings={**WRITTEN["settings"], "quantize": "int2"})
    found = read_record(png(tmp_path / "a.png", text)).settings
    assert found.quantize == "int2"
    with pytest.raises(UsageError, match="--quantize int2 is not valid"):
        found.with_(device="cpu")
    assert found.with_(quantize="none").quantize == "none"


def test_a_record_behind_the_pixels_is_found(tmp_path: Path) -> None:
    """Other tools move text there; Pillow reads it only when it has decoded them."""
    data = png(tmp_path / "a.png", json.dumps(WRITTEN)).read_bytes()
    at = data.index(b"tEXt") - 4
    length = int.from_bytes(data[at : at + 4]) + 12
    chunk, end = data[at : at + length], data.index(b"IEND") - 4
    (tmp_path / "b.png").write_bytes(data[:at] + data[at + length : end] + chunk + data[end:])
    assert read_record(tmp_path / "b.png").recipe == RECIPE


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("not json", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[1]", "is not klein's"),
        ('{"format": "1"}', "is not klein's"),
        (changed(format=99), "newer klein"),
        ('{"format": 1}', "is not valid"),
        (changed(recipe={**WRITTEN["recipe"], "width": 63}), "width 63"),
        (changed(recipe={**WRITTEN["recipe"], "seed": "1"}), "seed is '1'"),
        (changed(recipe={**WRITTEN["recipe"], "steps": True}), "steps is 'True'"),
        (changed(settings={**WRITTEN["settings"], "device": None}), "device is 'None'"),
        (changed(recipe="__import__('os')"), "is not valid: recipe is not a table"),
        (changed(model=None), "is not valid: model is not a table"),
        (changed(provenance=[1]), "is not valid"),
        (changed(provenance={"torch": "x" * 2000}), "is not valid"),
        (changed(provenance=dict.fromkeys(map(str, range(200)), "1")), "is not valid"),
        (changed(format=True), "is not klein's"),
        (changed(format=0), "is not klein's"),
        (changed(recipe={**WRITTEN["recipe"], "guidance": float("nan")}), "is damaged"),
        (changed(recipe={**WRITTEN["recipe"], "guidance": float("inf")}), "is damaged"),
        (changed(sigmas=0).replace('"guidance": 4.5', '"guidance": 1e999'), "guidance is 'inf'"),
        (changed(recipe={**WRITTEN["recipe"], "seed": 10**4000}), "seed 10000"),
        (json.dumps(WRITTEN).replace(str(2**62), "9" * 5000), "is damaged"),
        (changed(recipe={**WRITTEN["recipe"], "width": 1_000_000_000}), "width 1000000000"),
        (changed(recipe={**WRITTEN["recipe"], "steps": 10**9}), "steps 1000000000"),
        (changed(recipe={**WRITTEN["recipe"], "prompt": "\ud800"}), "not valid Unicode"),
        (changed(recipe={**WRITTEN["recipe"], "prompt": ""}), "prompt is empty"),
        (changed(recipe={**WRITTEN["recipe"], "model": "x" * 5000}), "model is"),
        (changed(settings={**WRITTEN["settings"], "engine": "x" * 5000}), "engine is 'x+"),
        (changed(sigmas=[1.0, 0.0]), "4 steps have 2 sigmas"),
        (changed(sigmas=[1.0, 0.5, 2.0, 0.1, 0.0]), "not between 0 and 1"),
        (changed(sigmas="1"), "sigmas are not numbers"),
        (changed(model={"name": "tiny", "revision": "../../etc"}), "revision is"),
        (changed(model={"name": "tiny", "weights": 7}), "weights is"),
        (changed(model={"name": "tiny", "repo": 7}), "repo is"),
        (changed(step_down=[]), "step_down is"),
        (changed(recipe={**WRITTEN["recipe"], "k" * 5000: 1}), "a key is"),
        ('{"format": 2, ' + json.dumps(WRITTEN)[1:], "is damaged"),
    ],
    ids=range(37),
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        read_record(png(tmp_path / "a.png", text))
    assert caught.value.hint
    assert len(caught.value.message) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("char", ["x", "\x01", "\U0001f600"])
def test_the_longest_prompts_can_be_read_back(tmp_path: Path, char: str) -> None:
    """However many characters each of theirs becomes in the record."""
    longest = replace(
        RECIPE, prompt="a" + char * (MAX_PROMPT - 1), negative_prompt=char * MAX_PROMPT
    )
    written = {**WRITTEN, "recipe": asdict(longest)}
    data = encode(numpy.zeros((32, 64, 3), numpy.uint8), ".png", written, parameters(longest))
    (tmp_path / "a.png").write_bytes(data)
    assert read_record(tmp_path / "a.png").recipe == longest


def test_a_huge_record_is_refused(tmp_path: Path) -> None:
    text = changed(recipe={**WRITTEN["recipe"], "prompt": "x" * MAX_RECORD_BYTES})
    with pytest.raises(UsageError):
        read_record(png(tmp_path / "a.png", text))


def test_files_that_hold_no_recipe(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "plain.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "plain.jpg")
    (tmp_path / "words.png").write_text("words")
    cut = png(tmp_path / "cut.png", changed())
    cut.write_bytes(cut.read_bytes()[:30])
    for name, complaint in {
        "plain.png": "holds no recipe",
        "plain.jpg": "holds no recipe",
        "words.png": "is not an image",
        "cut.png": "cut.png",
        "absent.png": "No such file",
    }.items():
        with pytest.raises(UsageError, match=complaint):
            read_record(tmp_path / name)


def test_pixels_are_read_as_they_were_written(tmp_path: Path) -> None:
    pixels = numpy.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=numpy.uint8)
    (tmp_path / "a.png").write_bytes(encode(pixels, ".png", None, ""))
    assert numpy.array_equal(read_pixels(tmp_path / "a.png"), pixels)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is as large as that, and has a text to be found."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes((8, 2, 0, 0, 0))
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize("side", [10_001, 60_000, 2**31 - 1])
def test_a_picture_that_would_fill_the_memory_is_not_decoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side, side))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_record, read_pixels):
        with pytest.raises(UsageError, match="too large to be klein's"):
            read(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 50_000, "kilobytes"


def test_a_compressed_text_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("klein", "x" * 50_000_000, zip=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", pnginfo=chunks)
    assert (tmp_path / "a.png").stat().st_size < 100_000
    with pytest.raises(UsageError):
        read_record(tmp_path / "a.png")


def test_files_that_never_end_or_are_huge_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    for path, complaint in {
        tmp_path / "pipe.png": "is not a file",
        tmp_path: "is not a file",
        Path("/dev/zero"): "is not a file",
        tmp_path / "huge.png": "too large",
        Path("a" * 5000): "name too long",
        Path("a\0b"): "a",
    }.items():
        with pytest.raises(UsageError, match=complaint):
            read_record(path)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "PPM", "EPS", "PDF"])
def test_a_format_that_klein_does_not_write_is_not_parsed(tmp_path: Path, kind: str) -> None:
    """Pillow hands some of them to other programs."""
    path = tmp_path / "a.png"
    Image.new("RGB", (16, 16)).save(path, kind)
    with pytest.raises(UsageError, match="is not an image"):
        read_record(path)


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp"])
def test_no_damage_is_a_crash(tmp_path: Path, extension: str) -> None:
    """Bytes changed, cut out and put in at random: a record, or a complaint in our own words."""
    random = numpy.random.default_rng(0)
    pixels = numpy.zeros((32, 64, 3), dtype=numpy.uint8)
    whole = encode(pixels, extension, WRITTEN, parameters(RECIPE))
    read, hints = 0, []
    for number in range(400):
        data = bytearray(whole)
        for _ in range(random.integers(1, 6)):
            at = int(random.integers(0, len(data)))
            cut = int(random.integers(0, 3))
            data[at : at + cut] = random.bytes(int(random.integers(0, 3)))
        path = tmp_path / f"{number}{extension}"
        path.write_bytes(data)
        try:
            read_record(path)
            read += 1
        except UsageError as error:
            hints.append(error.hint)
    assert min(read, len(hints)) > 5
    assert all(hints)
