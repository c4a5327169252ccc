"""Pixels and a record -> bytes of an image file -> the file, whole or not at all.

The last step of the data's way: Pixels((H, W, 3) uint8) -> SavedImage. The extension chooses the
format; PNG is lossless and the default.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klein_cli.errors import KleinError, UsageError
from klein_cli.images.levels import narrowed, over
from klein_cli.output.extras import EXIF_IFD, NOTHING_ELSE, Extras
from klein_cli.output.metadata import to_json
from klein_cli.recipe import Recipe

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

EXTENSIONS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
QUALITY = 95
"""Of JPEG and WebP, from 0 to 100."""
_TEMPORARY = ".klein-"
_SWEPT = ".klein-run-"
USER_COMMENT, MAKER_NOTE = 0x9286, 0x927C
ASCII_COMMENT, UNICODE_COMMENT = b"ASCII\0\0\0", b"UNICODE\0"
KLEINS_NOTE = b"klein\0"
"""EXIF's comment is for other programs, and the maker's note for klein; files of klein 0.1 have the
record in a comment in ASCII."""
# A JPEG segment holds 65,533 bytes; the rest is for EXIF's own structure.
_JPEG_COMMENT_BYTES = 65_000
# What the record holds besides its prompts, generously, and what each step adds to it.
_RECORD_BYTES = 5_000
_SIGMA_BYTES = 15


def is_lossless(extension: str) -> bool:
    """Whether files of this ending can keep every pixel."""
    return EXTENSIONS[extension.lower()] != "JPEG"


def encode(
    pixels: NDArray[Any],
    extension: str,
    written: Mapping[str, Any] | None,
    parameters: str,
    extras: Extras = NOTHING_ELSE,
    quality: int = QUALITY,
) -> bytes:
    """An image file in memory: (H, W, 3) RGB or (H, W, 4) RGBA pixels with their record.

    PNG carries the record as the text chunk `klein` and `parameters` beside it; JPEG and WebP carry
    them as EXIF's MakerNote and UserComment, of which a JPEG that has no room for both has the
    record alone. Where `written` is None, the file holds the same pixels and
    not a word. Pixels of 16 bits a channel are rounded to 8 but in a PNG, and transparent ones lie
    over white in a JPEG. Raises KleinError for what such a file cannot hold.
    """
    kind = EXTENSIONS[extension.lower()]
    if written is None:
        extras = extras.without_words()
    if kind == "PNG":
        return _png(pixels, written, parameters, extras)
    if pixels.dtype.itemsize > 1 and extras.lossless and kind == "WEBP":
        raise KleinError(
            "only PNG keeps the 16 bits a channel of this image", "write .png, or --no-keep"
        )
    if pixels.shape[2] == 4 and kind == "JPEG":
        pixels = over(pixels[:, :, :3], pixels[:, :, 3], white=True)
    return _by_pillow(narrowed(pixels), kind, written, parameters, extras, quality)


def _by_pillow(
    pixels: NDArray[numpy.uint8],
    kind: str,
    written: Mapping[str, Any] | None,
    parameters: str,
    extras: Extras,
    quality: int,
) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    options = extras.options(kind) | ({"subsampling": 0} if kind == "JPEG" else {})
    exif = Image.Exif()
    extras.add_to(exif)
    if written is not None:
        note = KLEINS_NOTE + to_json(written).encode("ascii")
        if kind == "JPEG" and len(note) > _JPEG_COMMENT_BYTES:
            raise KleinError("the recipe is too long for a JPEG file", "save it as .png or .webp")
        exif.get_ifd(EXIF_IFD)[MAKER_NOTE] = note
        comment = UNICODE_COMMENT + parameters.encode("utf-16-be")
        if kind != "JPEG" or len(note) + len(comment) <= _JPEG_COMMENT_BYTES:
            exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
    if written is not None or extras != NOTHING_ELSE:
        options["exif"] = exif
    Image.fromarray(pixels).save(buffer, kind, quality=quality, **options)
    return buffer.getvalue()


def _png(
    pixels: NDArray[Any], written: Mapping[str, Any] | None, parameters: str, extras: Extras
) -> bytes:
    from klein_cli.output.png_encoder import encode_png, text_chunk

    texts = {} if written is None else {"klein": to_json(written), "parameters": parameters}
    if extras.copyright is not None:
        texts["Copyright"] = extras.copyright
    chunks = [*extras.png_chunks(), *(text_chunk(*text) for text in texts.items())]
    return encode_png(pixels, chunks)


def check_room(recipe: Recipe, extension: str) -> None:
    """Raise UsageError when the words of `recipe` are more than the file format can carry."""
    if EXTENSIONS[extension.lower()] != "JPEG":
        return
    words = len(json.dumps([recipe.prompt, recipe.negative_prompt]))
    if words + _SIGMA_BYTES * recipe.steps > _JPEG_COMMENT_BYTES - _RECORD_BYTES:
        raise UsageError(
            f"a prompt of {len(recipe.prompt)} characters does not fit in a JPEG file's metadata",
            "write .png or .webp, or shorten the prompt",
        )


def keeps_pixels(recipe: Recipe, extension: str) -> bool:
    """Whether a file of this ending keeps what the recipe's mask keeps, if it has one."""
    return recipe.mask is None or not recipe.mask.keep or is_lossless(extension)


def check_kept(recipe: Recipe, extension: str) -> None:
    """Raise UsageError when pixels that a mask keeps would be encoded with losses."""
    if not keeps_pixels(recipe, extension):
        raise UsageError(
            "a JPEG file does not keep what the mask keeps, bit for bit",
            "write .png or .webp, which do; or give --no-keep",
        )


def save(data: bytes, path: Path, *, overwrite: bool, swept: bool = False) -> None:
    """Write `data` to `path` through a temporary file beside it; missing folders are made.

    Raises FileExistsError when `path` exists and `overwrite` is false, however late it appeared,
    and OSError when the disk refuses; either way nothing of this image is left behind. Should
    the process be killed, the temporary file is left: with `swept`, `sweep` knows it.
    """
    _make_folder(path.parent)
    temporary = _write_temporary(data, path.parent, _SWEPT if swept else _TEMPORARY)
    try:
        if overwrite:
            os.replace(temporary, path)
        else:
            _move_to_free(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def sweep(folders: Iterable[Path]) -> None:
    """Take away what killed runs left half written. Only for who holds the manifest's lock."""
    for folder in folders:
        for path in folder.glob(f"{_SWEPT}*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


def check_writable(folder: Path, *, swept: bool = False) -> None:
    """Raise UsageError unless files can be made in `folder`, or in the folder it would be made in.

    Tried with a real file, because permissions do not tell the whole truth; nothing stays behind
    but after a kill, as by `save`.
    """
    # None is there for one who may not look: the folder itself will say so.
    places = (place for place in (folder, *folder.parents) if os.path.lexists(place))
    existing = next(places, folder)
    try:
        _write_temporary(b"", existing, _SWEPT if swept else _TEMPORARY).unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write in the folder {existing}: {error.strerror or error}",
            "give -o a folder you can write in",
        ) from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        # A file in the folder's place is not an image whose name is taken.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None


def _write_temporary(data: bytes, folder: Path, prefix: str = _TEMPORARY) -> Path:
    path = folder / f"{prefix}{secrets.token_hex(8)}.tmp"
    # 0o666 leaves the file's permissions to the user's umask, as for any file they write.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _move_to_free(temporary: Path, path: Path) -> None:
    """Give the file its name only if nobody has it: a hard link cannot replace anything."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        _reserve_and_replace(temporary, path)


def _reserve_and_replace(temporary: Path, path: Path) -> None:
    """The same on a file system without hard links: take the name with an empty file first."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        os.replace(temporary, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
