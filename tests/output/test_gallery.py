"""The page of a folder: what it holds, what it refuses to replace, and that it trusts no text."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
from PIL import Image
from records import record

from klein_cli.errors import UsageError
from klein_cli.output.gallery import PAGE, check_page, images_in, write_gallery
from klein_cli.output.png import encode
from klein_cli.output.thumbnails import SOURCE_SIDE
from klein_cli.recipe import MAX_PROMPT, Mask, Recipe, Reference
from klein_cli.settings import Settings

SETTINGS = Settings(device="cpu", dtype="float32", attention="sdpa")
HOSTILE = [
    "</script><script>document.title = 'pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    '" onload="document.title=\'pwned\'" x="',
    "' autofocus onfocus='document.title=1",
    "<!-- --><style>*{display:none}</style>",
    "&lt;b&gt; &amp; &#60;script&#62;",
    "a\0b\x1b[2Jc\u2028de\u202egnp.evil",
    "]]><svg onload=alert(1)>",
]


def draw(
    path: Path, prompt: str = "a cat", *, seed: int = 1, size: tuple[int, int] = (64, 32)
) -> Path:
    """An image that klein could have made, of one grey."""
    width, height = size
    recipe = Recipe(
        prompt=prompt, seed=seed, width=width, height=height, steps=4, guidance=1.0, model="tiny"
    )
    written = record(recipe, SETTINGS, provenance={"torch": "2.13"})
    pixels = numpy.full((height, width, 3), seed % 256, dtype=numpy.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(pixels, path.suffix, written, ""))
    return path


class Page(HTMLParser):
    """What a browser would make of the page: tags with their attributes, and text by tag."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder: Path) -> Page:
    return Page(write_gallery(folder).page.read_text(encoding="utf-8"))


def test_every_picture_of_the_folder_and_below_is_there(tmp_path: Path) -> None:
    for name in ("10.png", "9.jpg", "sub/a.webp", ".hidden.png", ".thumbs/b.png"):
        draw(tmp_path / name, f"a picture called {name}", seed=7)
    Image.new("RGB", (10, 20)).save(tmp_path / "plain.png")
    (tmp_path / "notes.txt").write_text("no image")
    made = write_gallery(tmp_path)
    assert (made.images, made.unreadable) == (4, ())
    page = Page(made.page.read_text(encoding="utf-8"))
    links = [attributes["href"] for attributes in page.all("a") if attributes["href"]]
    assert links == ["./9.jpg", "./10.png", "./plain.png", "./sub/a.webp"]
    text = "\n".join(page.texts)
    assert "a picture called sub/a.webp" in text
    assert "the file holds none" in text
    assert "hidden" not in "".join(str(link) for link in links)


def test_the_recipe_and_what_computed_it_are_there(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "a cat", seed=12345)
    page = page_of(tmp_path)
    for words in ("12345", "sdpa", "float32", "2.13", "seed 12345, 64 x 32, tiny"):
        assert words in page.texts, words
    (thumbnail,) = [tag for tag in page.all("img") if tag.get("src")]
    assert thumbnail["alt"] == "a cat"


@pytest.mark.parametrize("prompt", HOSTILE)
def test_a_prompt_stays_text(tmp_path: Path, prompt: str) -> None:
    draw(tmp_path / "a.png", "a cat")
    harmless = page_of(tmp_path)
    draw(tmp_path / "a.png", prompt)
    page = page_of(tmp_path)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert [sorted(a) for _, a in page.tags] == [sorted(a) for _, a in harmless.tags]
    shown = re.sub("[\0\x1b]", "\N{REPLACEMENT CHARACTER}", prompt)
    text = "".join(page.texts)
    # What cannot have been a prompt may also be refused when the record is read.
    assert shown in text or (shown != prompt and "the file holds none" in text)


@pytest.mark.parametrize("name", ["javascript:alert(1).png", "a b#c?d%20&e\"'.png", "a\\..\\x.png"])
def test_a_file_name_stays_a_file_name(tmp_path: Path, name: str) -> None:
    draw(tmp_path / name)
    (link,) = [tag["href"] for tag in page_of(tmp_path).all("a") if tag["href"]]
    assert link is not None
    assert link.startswith("./")
    assert not set("#?\"'<> :") & set(link)


def test_a_file_name_that_is_no_utf8(tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png")
    try:
        os.rename(path, os.fsencode(tmp_path) + b"/\xff.png")
    except OSError:
        pytest.skip("this disk takes no such name")
    assert page_of(tmp_path).all("a")[0]["href"] == "./%FF.png"


def test_nothing_is_fetched_and_only_our_script_may_run(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    source = write_gallery(tmp_path).page.read_text(encoding="utf-8")
    page = Page(source)
    assert not re.search(r"https?://|url\(|@import", source)
    assert not page.all("link")
    assert all("src" not in script for script in page.all("script"))
    (policy,) = [tag["content"] for tag in page.all("meta") if tag.get("http-equiv")]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_very_long_prompt_does_not_make_a_very_long_page(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "x")
    short = write_gallery(tmp_path).page.stat().st_size
    draw(tmp_path / "a.png", "x" * MAX_PROMPT)
    long = write_gallery(tmp_path, overwrite=True).page.stat().st_size
    assert long < short + 1.5 * MAX_PROMPT


def test_files_that_are_no_pictures_are_told_and_left_out(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    os.mkfifo(tmp_path / "d.png")
    made = write_gallery(tmp_path)
    assert made.images == 1
    assert made.unreadable == (tmp_path / "b.png", tmp_path / "c.png")


@pytest.mark.parametrize("kind", ["EPS", "DDS", "BMP"])
def test_only_formats_of_kleins_are_opened_whatever_the_name(tmp_path: Path, kind: str) -> None:
    """Pillow hands an EPS to Ghostscript, and stumbles over others."""
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", kind)
    draw(tmp_path / "b.png")
    made = write_gallery(tmp_path)
    assert (made.images, made.unreadable) == (1, (tmp_path / "a.png",))


def test_a_strangers_photograph_is_shown_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200), "red").save(tmp_path / "a.jpg", exif=exif)
    (card,) = page_of(tmp_path).all("li")
    assert (card["data-width"], card["data-height"]) == ("200", "400")


def test_a_strangers_odd_palette_is_shown_without_a_word(tmp_path: Path) -> None:
    odd = Image.new("P", (40, 20))
    odd.putpalette([0, 0, 0, 255, 0, 0])
    odd.save(tmp_path / "a.png", transparency=b"\x00\x80")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert len(page_of(tmp_path).all("li")) == 1
    assert said == []


def test_its_own_page_is_made_again_and_another_is_left_alone(tmp_path: Path) -> None:
    draw(tmp_path / "1.png")
    write_gallery(tmp_path)
    draw(tmp_path / "2.png")
    assert write_gallery(tmp_path).images == 2
    (tmp_path / PAGE).write_text("<title>my own page</title>")
    with pytest.raises(UsageError, match="klein did not make it"):
        write_gallery(tmp_path)
    assert "my own page" in (tmp_path / PAGE).read_text()
    with pytest.raises(UsageError):
        check_page(tmp_path, overwrite=False)
    assert write_gallery(tmp_path, overwrite=True).images == 2


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_a_folder_without_pictures_gets_no_page(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        write_gallery(tmp_path / name)
    assert not (tmp_path / "empty" / PAGE).exists()


def test_people_count_2_before_10(tmp_path: Path) -> None:
    for name in ("b-10.png", "b-9.png", "B-2.png", "a.png", "10/1.png", "9/1.png", "²-1.png"):
        draw(tmp_path / name)
    found = [path.relative_to(tmp_path).as_posix() for path in images_in(tmp_path)]
    assert found == ["9/1.png", "10/1.png", "a.png", "B-2.png", "b-9.png", "b-10.png", "²-1.png"]


def edited(path: Path, *sources: Path) -> Path:
    """An edit of these images that klein could have made."""
    references = tuple(
        Reference(
            sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
            name=source.name,
            width=64,
            height=64,
        )
        for source in sources
    )
    recipe = Recipe(
        prompt="make it red",
        seed=1,
        width=64,
        height=64,
        steps=4,
        guidance=1.0,
        model="tiny",
        references=references,
        mask=Mask(alpha=True, box=(0, 0, 64, 64)),
    )
    written = record(recipe, SETTINGS, provenance={})
    path.write_bytes(encode(numpy.zeros((64, 64, 3), numpy.uint8), ".png", written, ""))
    return path


def test_an_edit_is_shown_beside_what_it_was_made_from(tmp_path: Path) -> None:
    """By content: its file may have been moved and renamed since."""
    folder, photos = tmp_path / "out", tmp_path / "photos"
    folder.mkdir(), photos.mkdir()
    for name, colour in (("a.tif", "red"), ("b.png", "blue"), ("c.png", "lime")):
        Image.new("RGB", (640, 640), colour).save(photos / name)
    edited(folder / "1.png", photos / "a.tif", photos / "b.png")
    draw(folder / "2.png")
    (photos / "a.tif").rename(photos / "moved.tif")
    (photos / "b.png").unlink()
    page = Page(write_gallery(folder, images=[photos]).page.read_text(encoding="utf-8"))
    befores = [tag for tag in page.all("img") if tag.get("class") == "before"]
    assert len(befores) == 1
    data = base64.b64decode(str(befores[0]["src"]).removeprefix("data:image/webp;base64,"))
    with Image.open(io.BytesIO(data)) as small:
        assert small.size == (SOURCE_SIDE, SOURCE_SIDE)
        red, green, _ = numpy.asarray(small.convert("RGB"))[0, 0]
        assert red > 200 > 50 > green
    assert not [tag for tag in page_of(folder).all("img") if tag.get("class") == "before"]


def test_what_an_edit_was_given_is_told(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "a.png")
    edited(tmp_path / "1.png", tmp_path / "photos" / "a.png")
    text = "\n".join(page_of(tmp_path).texts)
    assert "a.png, seen at 64x64 (sha256 " in text
    assert "what is transparent, painted in 64x64 at 0,0, all else kept" in text
    assert "{" not in text.split("</style>")[-1].split("make it red")[1].split("steps")[0]
