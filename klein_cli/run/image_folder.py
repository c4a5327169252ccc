"""A folder of images, each of which is edited by itself -> rows, each with a name of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from klein_cli.errors import UsageError
from klein_cli.output.naming import EXTENSIONS, name_key, possible_name
from klein_cli.prompts.rows import Row

_READABLE = (*EXTENSIONS, ".jfif", ".mpo", ".tif", ".tiff")
_TO_BE_CONVERTED = (".heic", ".heif", ".avif", ".gif", ".bmp", ".jxl", ".jp2")
"""Images all the same: what cannot be read of them is refused by name."""
_LISTED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder:
    """The images of a folder in the order of their names, and `notes` of what is left out."""

    images: tuple[Path, ...]
    notes: tuple[str, ...]

    def rows(self, prompt: str, others: Sequence[str], *, keep_format: bool) -> Iterator[Row]:
        """A row an image: it comes first, then the `others`.

        The result is a PNG under the image's stem, or with `keep_format` a JPEG or WebP file of a
        JPEG or WebP file; images that would share a name have their old ending in it.
        """
        names = [_name(path, keep_format) for path in self.images]
        shared = Counter(map(name_key, names))
        for number, (path, name) in enumerate(zip(self.images, names, strict=True), start=1):
            if shared[name_key(name)] > 1:
                stem = f"{path.stem}-{path.suffix[1:].lower()}"
                name = Path(possible_name(stem + name.suffix))
            yield Row(prompt=prompt, line=number, image=(str(path), *others), name=str(name))


def image_folder(folder: Path) -> ImageFolder:
    """What is in a folder, but not in the folders in it. Raises UsageError.

    Hidden files are none of the user's images, and links that leave the folder are not followed.
    """
    try:
        paths = sorted(folder.iterdir(), key=lambda path: (path.name.casefold(), path.name))
    except OSError as error:
        raise UsageError(
            f"cannot read the folder {folder}: {error.strerror or error}", "check its permissions"
        ) from None
    top = folder.resolve()
    left_out: dict[str, list[str]] = {}
    images = []
    for path in paths:
        if path.name.startswith("."):
            continue
        reason = _reason_against(path, top)
        if reason is None:
            images.append(path)
        else:
            left_out.setdefault(reason, []).append(path.name)
    if not images:
        raise UsageError(f"{folder} holds no images", "give a folder of PNG, JPEG or WebP files")
    notes = (f"left out, {reason}: {_listed(names)}" for reason, names in left_out.items())
    return ImageFolder(images=tuple(images), notes=tuple(notes))


def check_apart(images: Path, output: Path) -> None:
    """Raise UsageError unless results go elsewhere than into the folder that is edited."""
    inside = images.resolve()
    place = output.resolve()
    for above in (place, *place.parents):
        same = above == inside
        if not same and os.path.exists(above):
            same = os.path.samefile(above, inside)
        if same:
            raise UsageError(
                f"-o {output} lies in {images}, whose images are edited",
                "give a folder outside of it",
            )


def _reason_against(path: Path, top: Path) -> str | None:
    if path.is_symlink() and not path.resolve().is_relative_to(top):
        return "links to elsewhere"
    if path.is_dir():
        return "folders"
    if path.suffix.lower() not in (*_READABLE, *_TO_BE_CONVERTED) or not path.is_file():
        return "no images"
    return None


def _name(path: Path, keep_format: bool) -> Path:
    kept = keep_format and path.suffix.lower() in EXTENSIONS
    return Path(possible_name(path.stem + (path.suffix if kept else ".png")))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
