"""A folder of images -> one HTML file that shows them, and needs nothing else.

Everything in the page comes from the images themselves, so that it can be made again at any
time, and a run that was resumed shows all of its images. What images say is a stranger's text:
it is escaped where it is written, and the page's own policy lets no script run but the page's.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from urllib.parse import quote

from klein_cli.errors import UsageError
from klein_cli.images.finding import find_images
from klein_cli.output.described import given
from klein_cli.output.naming import EXTENSIONS
from klein_cli.output.png import save
from klein_cli.output.reading import Record, read_record
from klein_cli.output.thumbnails import View, source_thumbnail, view_of

PAGE = "index.html"

_MARK = '<meta name="generator" content="klein gallery">'
_MARK_WITHIN = 2_000
_GIVEN = ("references", "mask", "adapters")
_LONGEST_TEXT = 20_000
_LONGEST_ALT = 400
_CONTROLS = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
_SEED_DIGITS = 19
_ORDERS = {
    "name": "name",
    "newest": "newest first",
    "prompt": "prompt",
    "seed": "seed",
    "size": "largest first",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryItem:
    """An image on the page. `path` is relative to the page.

    `record` is None where the image says nothing of itself; `sources` are the images that it was
    made from, as WebP files, as many as were found.
    """

    path: Path
    view: View
    record: Record | None
    sources: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """A page that was written: how many images it shows, and files that could not be read."""

    page: Path
    images: int
    unreadable: tuple[Path, ...]


def check_page(folder: Path, *, overwrite: bool) -> None:
    """Raise UsageError when the folder has an index.html that is somebody else's."""
    page = folder / PAGE
    if overwrite or not os.path.lexists(page):
        return
    try:
        with page.open("rb") as file:
            ours = _MARK.encode() in file.read(_MARK_WITHIN)
    except OSError:
        ours = False
    if not ours:
        raise UsageError(f"{page} exists, and klein did not make it", "-y replaces it")


def write_gallery(
    folder: Path,
    *,
    images: Sequence[Path] = (),
    overwrite: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> Gallery:
    """Make `folder`/index.html of all images in the folder and below, in an older one's place.

    Edits are shown beside the images that they were made from, where those are among `images`:
    files, and folders with all that is below. `on_image` hears how many are read, of how many.
    Raises UsageError when there is no such folder or no image in it, or when an index.html there is
    not klein's and not to be replaced.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"there is no folder {folder}", "give a folder of images")
    check_page(folder, overwrite=overwrite)
    paths = images_in(folder)
    items, unreadable = [], []
    # Pillow warns of how a stranger's image was made. Filters are all threads' alike.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor() as pool:
        views = pool.map(view_of, paths)
        for number, (path, view) in enumerate(zip(paths, views, strict=True), start=1):
            if view is None:
                unreadable.append(path)
            else:
                name = path.relative_to(folder)
                items.append(GalleryItem(path=name, view=view, record=_record(path)))
            if on_image:
                on_image(number, len(paths))
    if not items:
        raise UsageError(f"{folder} holds no images", "give a folder that klein drew into")
    title = folder.resolve().name or str(folder)
    items = _with_sources(items, images)
    save(page(title, items).encode(), folder / PAGE, overwrite=True)
    return Gallery(page=folder / PAGE, images=len(items), unreadable=tuple(unreadable))


def _with_sources(items: list[GalleryItem], images: Sequence[Path]) -> list[GalleryItem]:
    """The same, each with the images that it was made from, if they are found among `images`."""
    if not images:
        return items
    wanted = {
        source.sha256: source.name
        for item in items
        if item.record
        for source in item.record.recipe.references
    }
    found = find_images(wanted, images, below=True)
    small = {digest: source_thumbnail(path) for digest, path in found.items()}
    return [replace(item, sources=tuple(_sources(item, small))) for item in items]


def _sources(item: GalleryItem, small: Mapping[str, bytes | None]) -> Iterator[bytes]:
    for source in item.record.recipe.references if item.record else ():
        image = small.get(source.sha256)
        if image is not None:
            yield image


def images_in(folder: Path) -> list[Path]:
    """The image files in `folder` and below that are not hidden, as people count: 2 before 10."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(place, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    found = [path for path in found if path.is_file()]
    return sorted(found, key=lambda path: _counted(str(path.relative_to(folder))))


def page(title: str, items: Sequence[GalleryItem]) -> str:
    """The page as text that UTF-8 can hold."""
    style = _asset("gallery.css")
    script = _asset("gallery.js")
    policy = (
        f"default-src 'none'; img-src data: 'self' file:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    many = f"{len(items)} image{'s' * (len(items) != 1)}"
    orders = "".join(f'<option value="{key}">{word}</option>' for key, word in _ORDERS.items())
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            _MARK,
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{_text(title)}: {many}</title>",
            f"<style>{style}</style>\n</head>\n<body>",
            f'<header><h1><bdi>{_text(title)}</bdi></h1><form id="tools" role="search" hidden>',
            '<div class="bar"><label>Filter <input id="filter" type="search" '
            'placeholder="words" title="all of these words; / comes here"></label>',
            f'<label>Sort by <select id="sort">{orders}</select></label></div></form>',
            f'<output id="count" for="filter" aria-live="polite">{many}</output></header>',
            '<main><p id="nothing" class="nothing" hidden>No image has all of these words.</p>',
            '<ul id="images">',
            *(_card(place, item) for place, item in enumerate(items)),
            "</ul></main>",
            '<dialog id="dialog" aria-label="An image and its recipe">',
            '<div class="stage"><div id="befores" class="befores"></div>',
            '<img id="large" class="large" alt=""><div id="recipe"></div></div>',
            '<div class="bar below"><button type="button" id="previous">Previous</button>',
            '<button type="button" id="next">Next</button>',
            '<button type="button" id="copy">Copy the prompt</button>',
            '<a id="file" href="">file</a>',
            '<button type="button" id="close" class="close">Close</button></div></dialog>',
            f"<script>{script}</script>\n</body>\n</html>\n",
        ]
    )


def _card(place: int, item: GalleryItem) -> str:
    record, name, view = item.record, str(item.path), item.view
    recipe = record.recipe if record else None
    prompt = recipe.prompt if recipe else name
    facts = f"{view.width} x {view.height}"
    if recipe:
        facts = f"seed {recipe.seed}, {facts}, {recipe.model}"
    seed = f"{recipe.seed:0{_SEED_DIGITS}d}" if recipe else ""
    return (
        f'<li data-place="{place}" data-modified="{view.modified:.0f}" data-seed="{seed}" '
        f'data-pixels="{view.width * view.height}" data-width="{view.width}" '
        f'data-height="{view.height}"><button type="button" class="open" '
        f'aria-haspopup="dialog"><img src="{_data(view.thumbnail)}" '
        f'alt="{_text(prompt[:_LONGEST_ALT])}" loading="lazy" decoding="async">'
        f"{''.join(_befores(item))}</button>"
        f'<p class="prompt" dir="auto">{_text(prompt)}</p><p class="facts">{_text(facts)}</p>'
        f'<div class="recipe"><a href="{_link(item.path)}">{_text(name)}</a>'
        f"<dl>{''.join(_lines(record))}</dl></div></li>"
    )


def _befores(item: GalleryItem) -> Iterator[str]:
    """The images that an edit was made from."""
    for source in item.sources:
        yield f'<img class="before" src="{_data(source)}" alt="before" loading="lazy">'


def _data(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode('ascii')}"


def _lines(record: Record | None) -> Iterator[str]:
    """The recipe, how it was computed and by what, as the record names them."""
    if record is None:
        yield "<dt>recipe</dt><dd>the file holds none</dd>"
        return
    for name, value in given(record.recipe):
        yield f"<dt>{name}</dt><dd>{_text(value)}</dd>"
    said = record.table()
    recipe = {name: value for name, value in said.pop("recipe").items() if name not in _GIVEN}
    said["parts"] = [f"{part.part}: {part.name}" for part in record.parts]
    tables = {**recipe, **said.pop("settings"), **said.pop("provenance")}
    for name, value in (tables | said).items():
        if isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        if value not in (None, ""):
            yield f"<dt>{_text(name.replace('_', ' '))}</dt><dd>{_text(str(value))}</dd>"


def _record(path: Path) -> Record | None:
    try:
        return read_record(path)
    except UsageError:
        return None


def _counted(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in parts]


def _link(path: Path) -> str:
    """A relative address that no name can turn into another: "javascript:..." is a file too."""
    return "./" + quote(os.fsencode(path.as_posix()))


def _text(text: str) -> str:
    """Text as it may stand between tags and in quoted attributes, bounded and without controls."""
    if len(text) > _LONGEST_TEXT:
        text = text[:_LONGEST_TEXT] + "…"
    return escape(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text))


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
