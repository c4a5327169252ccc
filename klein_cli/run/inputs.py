"""The images that rows name -> what their recipes say of them: digests and sizes.

A file is read and hashed once in a run, whatever number of rows share it, and is not decoded for
that: only where a mask is given, since what is painted depends on where it is white.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from klein_cli.errors import UsageError
from klein_cli.images.files import MAX_FILE_BYTES
from klein_cli.images.inputs import reference, told_name
from klein_cli.images.masks import box_of, masked_source, painted_size, repainted
from klein_cli.prompts.files import STDIN
from klein_cli.prompts.rows import Defaults, Inputs, Row
from klein_cli.recipe import ALPHA, MAX_REFERENCES, Mask, Reference
from klein_cli.run.events import Listener

if TYPE_CHECKING:
    from klein_cli.images.masks import Box, Expand
    from klein_cli.images.reading import Probe
    from klein_cli.images.store import ImageStore

Size = tuple[int, int]

MANY = 4
"""References that the model was made for; it takes more, and may leave some out of account."""
_OPTIONS = ("image", "mask", "expand")
_DESCRIBED = 20
_OF_A_KIND = 3


class InputImages:
    """Finds the images of a run's rows, and takes them into its `store`.

    Files that a row names are looked for from `folder`, where the prompts file lies, and those of
    the options from the present folder; "-" is `stdin`, None where it holds the prompts. `most` is
    how many one row has at most, and `masked` whether some row has a mask; `taken` are the options
    that some row has left to them.
    """

    def __init__(self, store: ImageStore, *, folder: Path, stdin: BinaryIO | None) -> None:
        self.store = store
        self.most = 0
        self.masked = False
        self.taken: set[str] = set()
        self._folder = folder
        self._stdin = stdin
        self._probes: dict[Path | None, Probe] = {}
        self._seen: dict[str, str] = {}
        self._boxes: dict[tuple[str, str | None, bool, Expand | None], tuple[Box, Size]] = {}

    def of(self, row: Row, defaults: Defaults) -> Inputs:
        """The images of a row. Raises UsageError for one that cannot be used, for too many, and
        for a mask without an image.
        """
        self.taken |= {name for name in _OPTIONS if getattr(row, name) is None}
        return self._of(row, defaults)

    def of_options(self, defaults: Defaults) -> Inputs:
        """Those that the options name, for a row that says nothing of them. Raises UsageError."""
        return self._of(Row(prompt=""), defaults) if defaults.image else Inputs()

    def _of(self, row: Row, defaults: Defaults) -> Inputs:
        given = self._given(row, defaults)
        if len(given) > MAX_REFERENCES:
            raise UsageError(f"{len(given)} images are given", f"give at most {MAX_REFERENCES}")
        mask, expand = row.mask or defaults.mask, row.expand or defaults.expand
        self.most = max(self.most, len(given))
        references = tuple(map(reference, given))
        if mask is None and expand is None:
            self._see(given, references)
            return Inputs(references=references)
        if not given:
            what = "expand" if mask is None else "a mask"
            raise UsageError(f"there is {what}, and no image", "name the image that it is of")
        self.masked = True
        place = self._folder if row.mask else Path()
        file = None if mask is None or mask == ALPHA else self._mask(mask, place)
        box, (width, height) = self._box(given[0], file, mask == ALPHA, expand)
        source = replace(references[0], width=width, height=height)
        references = (source, *references[1:])
        self._see(given, references, box)
        return Inputs(
            references=references,
            mask=Mask(
                sha256=file.sha256 if file else None,
                name=told_name(file) if file else None,
                alpha=mask == ALPHA,
                expand=expand,
                box=box,
                blur=defaults.blur,
                keep=defaults.keep,
            ),
        )

    def described(self) -> Iterator[str]:
        """A line for each of the first images that were found: what the model sees of it."""
        lines = list(self._seen.values())
        yield from lines[:_DESCRIBED]
        if len(lines) > _DESCRIBED:
            yield f"and {len(lines) - _DESCRIBED} more images"

    def _see(
        self, given: Sequence[Probe], references: Sequence[Reference], box: Box | None = None
    ) -> None:
        """Remember what is seen of a row's images, of the first in a `box`, for `described`."""
        part = "" if box is None else ", painted from {},{} to {},{}".format(*box)
        for found, seen in zip(given, references, strict=True):
            line = f"{found.name}: {found.width}x{found.height}{part}, seen as "
            line += f"{seen.width}x{seen.height}, {seen.tokens} tokens"
            self._seen.setdefault(found.sha256, line)
            part = ""

    def _given(self, row: Row, defaults: Defaults) -> list[Probe]:
        if row.image is None:
            return [self._probe(name, Path()) for name in defaults.image]
        return [self._probe(name, self._folder) for name in row.image]

    def _probe(self, name: str, folder: Path) -> Probe:
        path = None if name == STDIN else folder / _at_home(name)
        if path is not None and os.path.isdir(path):  # a Path raises for a name that is too long
            hint = f'to edit each image in it: klein edit {shlex.quote(name)} "..." -o OUT'
            raise UsageError(f"{name} is a folder", hint)
        if path not in self._probes:
            self._probes[path] = self.store.add(self._piped() if path is None else path)
        return self._probes[path]

    def _mask(self, name: str, folder: Path) -> Probe:
        if name != STDIN and os.path.isdir(folder / _at_home(name)):
            raise UsageError(
                f"the mask {name} is a folder", "give one file: the mask of all images"
            )
        return self._probe(name, folder)

    def _piped(self) -> bytes:
        if self._stdin is None:
            raise UsageError("standard input holds the prompts, and no image", "give a file")
        return self._stdin.read(MAX_FILE_BYTES + 1)

    def _box(
        self, source: Probe, mask: Probe | None, alpha: bool, expand: Expand | None
    ) -> tuple[Box, Size]:
        """What is painted of a source, and at which size."""
        key = source.sha256, mask.sha256 if mask else None, alpha, expand
        if key not in self._boxes:
            white = self.store.mask(mask.sha256) if mask else None
            if alpha:
                picture = self.store.picture(source.sha256)
                box = masked_source(picture, white, alpha=True, expand=expand).box
            else:
                sides = source.width, source.height
                box = box_of(repainted(*sides, source.name, white, expand=expand))
            self._boxes[key] = box, painted_size(box)
        return self._boxes[key]


class ImageNotes:
    """What was found about images when they were decoded, told to a `listener`, each once.

    After a few of one kind, the rest are details: a folder of a phone's photos is all of one kind.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._said: set[tuple[str, str]] = set()
        self._kinds: Counter[str] = Counter()

    def tell(self, notes: Iterable[tuple[str, str]]) -> None:
        """(name, sentence) of each."""
        for name, text in notes:
            if (name, text) in self._said:
                continue
            self._said.add((name, text))
            self._listener.event("notice", message=text)
            kind = text.replace(name, "")
            self._kinds[kind] += 1
            if self._kinds[kind] <= _OF_A_KIND:
                more = "; more of the kind are not told" if self._kinds[kind] == _OF_A_KIND else ""
                self._listener.note(text + more)
            else:
                self._listener.detail(text)


def _at_home(name: str) -> Path:
    """A path in which a ~ means the home folder, as for a shell."""
    return Path(name).expanduser() if name.startswith("~/") else Path(name)
