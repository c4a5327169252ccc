"""`python -m klein_cli.serve.decoder`: images that strangers sent -> images that can be trusted.

A process for each request, without torch and without the GPU, which may take so much memory and
time and no more, and write no file: whatever a hostile file does to a decoder, it does it here. Out
come new PNG files of nothing but pixels, and what a recipe says of them.
"""

from __future__ import annotations

import hashlib
import os
import resource
import sys
from dataclasses import replace

from klein_cli.errors import KleinError, UsageError
from klein_cli.images.inputs import masked, reference
from klein_cli.images.reading import Picture, Probe, probe, read
from klein_cli.images.store import ImageStore
from klein_cli.recipe import Mask, Recipe, Reference
from klein_cli.run.executors import wire
from klein_cli.run.executors.files import SentFile
from klein_cli.run.executors.worker import DrawRequest, Failure

MASK = "mask"
"""What the file of the mask is called."""

_MEMORY = 3 * 2**30
_SECONDS = 30
_MAX_PIXELS = 16_777_216
_BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")
_EMPTY = Recipe(prompt="a", seed=0, width=16, height=16, steps=1, guidance=1.0, model="")


def main() -> None:
    """Read a request of files from standard input, and answer on standard output."""
    for limit, most in (
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_CPU, _SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    answer: wire.Message
    try:
        asked = wire.decoded(sys.stdin.buffer.read())
        assert isinstance(asked, DrawRequest)
        answer = cleaned(asked.files)
    except KleinError as error:
        answer = Failure.of(error)
    except (Exception, MemoryError):  # what it says may be a stranger's, or an address
        answer = Failure.of(UsageError("an image cannot be read", "send PNG, JPEG or WebP files"))
    with os.fdopen(os.dup(1), "wb") as out:
        for piece in wire.encoded(answer):
            out.write(piece)


def cleaned(files: list[SentFile]) -> DrawRequest:
    """The files anew, and a recipe with what there is to say of them. Raises UsageError.

    The one called MASK is OpenAI's: what is transparent in it is repainted.
    """
    images = [file for file in files if file.name != MASK]
    masks = [file for file in files if file.name == MASK]
    found = [_cleaned(file) for file in images]
    sent = [file for file, _ in found]
    references = [seen for _, seen in found]
    mask = None
    if masks:
        new = _mask(masks[0])
        references[0], mask = _masked(sent[0], references[0], new)
        sent.append(new)
    recipe = replace(_EMPTY, references=tuple(references), mask=mask)
    return DrawRequest(recipes=[recipe], tiled=False, files=sent)


def _cleaned(file: SentFile) -> tuple[SentFile, Reference]:
    """A file of the same pixels, and how a recipe names it: as the one that was sent, if no kept
    pixel and nothing else of it that an edit could keep is lost.
    """
    found = _checked(file)
    picture = read(file.data, name=file.name)
    data = _png(picture)
    whole = picture.alpha is None and picture.profile is None and picture.kept.dtype.itemsize == 1
    digest = found.sha256 if whole else hashlib.sha256(data).hexdigest()
    seen = replace(reference(found), sha256=digest)
    return SentFile(sha256=digest, name=file.name, path=None, data=data, stands_in=True), seen


def _masked(file: SentFile, seen: Reference, mask: SentFile) -> tuple[Reference, Mask]:
    store = ImageStore()
    file.put_into(store)
    return masked(store, seen, mask.data)


def _mask(file: SentFile) -> SentFile:
    """A mask as klein reads it: white where OpenAI's is transparent."""
    import numpy

    from klein_cli.output.png_encoder import encode_png

    _checked(file)
    picture = read(file.data, name=file.name)
    if picture.alpha is None:
        raise UsageError(
            "the mask has no transparency", "what is to be painted anew is transparent in a mask"
        )
    white = numpy.where(picture.alpha == 0, 255, 0).astype(numpy.uint8)
    data = encode_png(numpy.repeat(white[:, :, None], 3, axis=2), [])
    digest = hashlib.sha256(data).hexdigest()
    return SentFile(sha256=digest, name=file.name, path=None, data=data)


def _checked(file: SentFile) -> Probe:
    """What the header says, if it is of a format and a size that are taken. Raises UsageError."""
    if not file.data.startswith(_BEGINNINGS):
        raise UsageError(f"{file.name} is not an image", "send PNG, JPEG or WebP files")
    found = probe(file.data, name=file.name)
    if found.width * found.height > _MAX_PIXELS:
        raise UsageError(
            f"{file.name} has {found.width}x{found.height} pixels",
            f"send at most {_MAX_PIXELS // 2**20} million",
        )
    return found


def _png(picture: Picture) -> bytes:
    from klein_cli.output.png_encoder import encode_png

    return encode_png(picture.rgb, [])


if __name__ == "__main__":
    main()
