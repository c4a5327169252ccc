"""Recipe: everything one image depends on, validated once.

The first thing made from the user's words, and the last thing written into the PNG.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from klein_cli.errors import UsageError

PIXELS_PER_TOKEN = 16
"""A token of latents is a square of so many pixels a side, so sides are multiples of it."""
MAX_SEED = 2**63 - 1
CPU_SEEDS = 2**32
"""So many torch's generator on the CPU tells apart: it reads the lower 32 bits."""
MAX_SIDE = 4096
MAX_STEPS = 1000
MAX_PROMPT = 40_000
"""Characters: many times what a model reads, and few enough for an image's record."""
MAX_REFERENCES = 10
MAX_ADAPTERS = 100
MAX_SOURCE_SIDE = 65_500
"""Pixels a side of an image that is given, expanded or not: what the formats can hold."""
MAX_BLUR = 1000
ALPHA = "alpha"
"""A mask that is what the first image leaves transparent, as rows and options name it."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_NAME = 1000
_DAMAGED_RECIPE = "the recipe is damaged, or not klein's"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An image that is given: its file, by content, and the size at which the model sees it.

    `sha256` is of the file's bytes, in hexadecimal; `name` the file's own, without folders, of
    which nothing depends. Sides in pixels, multiples of 16.
    """

    sha256: str
    name: str = field(compare=False)
    width: int
    height: int

    def __post_init__(self) -> None:
        _check_file(self.sha256, self.name)
        check_sides(self.width, self.height)

    @property
    def tokens(self) -> int:
        """How many the model sees it as."""
        return self.width * self.height // PIXELS_PER_TOKEN**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Which part of the first reference, the source, is painted anew, and how it is put back.

    `sha256` and `name` are of the mask's file, None where it is what the source leaves transparent
    (`alpha`) or nothing but what is added around it. All the rest is in pixels: `expand` is added
    at the left, top, right and bottom; `box` (left, top, right, bottom) is the part of the source,
    expanded, that the model sees, brought to the size of the recipe; `blur` softens the mask
    inward. With `keep`, the pixels outside the mask are the source's own.
    """

    sha256: str | None = None
    name: str | None = field(default=None, compare=False)
    alpha: bool = False
    expand: tuple[int, int, int, int] | None = None
    box: tuple[int, int, int, int]
    blur: int = 0
    keep: bool = True

    def __post_init__(self) -> None:
        if self.sha256 is not None:
            _check_file(self.sha256, self.name or "")
        elif not self.alpha and self.expand is None:
            raise UsageError("the mask is of nothing", _DAMAGED_RECIPE)
        left, top, right, bottom = _four("box", self.box)
        if not (left < right and top < bottom):
            raise UsageError(f"the box {list(self.box)} is empty", _DAMAGED_RECIPE)
        if self.expand is not None and not any(_four("expansion", self.expand)):
            raise UsageError("the image is expanded by nothing", "give at least one side")
        if not 0 <= self.blur <= MAX_BLUR:
            raise UsageError(
                f"a mask's blur of {self.blur} is out of range", f"use 0 to {MAX_BLUR} pixels"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA, or another change of the weights: its file, by content, and how much of it.

    `sha256` is of the file's bytes, in hexadecimal; `name` the file's own, without folders.
    """

    sha256: str
    name: str = field(compare=False)
    weight: float

    def __post_init__(self) -> None:
        _check_file(self.sha256, self.name)
        if not -100.0 <= self.weight <= 100.0:
            raise UsageError(
                f"an adapter's weight of {self.weight} is out of range", "use -100 to 100"
            )


class Shape(NamedTuple):
    """What the images of a batch have in common. Sides in pixels.

    `references` are the sizes of those that are given, in order; `masked` whether a part of the
    first is painted; `adapters` change the weights with which the batch is computed.
    """

    width: int
    height: int
    steps: int
    guidance: float
    references: tuple[tuple[int, int], ...] = ()
    masked: bool = False
    adapters: tuple[Adapter, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFile:
    """A file in place of one of the model's own: the `part`, as the official layout calls it.

    `name` is the file's own, without folders; `weights` its fingerprint, `kind` how its weights
    are stored, in a word or two.
    """

    part: str
    name: str = field(compare=False)
    weights: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What draws: a model by `name`, and which of that name.

    `repo` and `revision`, a commit, are its place on the hub, None for a folder and for the
    embedded model; `weights` is the fingerprint of all that it is made of, None where nobody has
    looked; `parts` are the files in place of its own.
    """

    name: str
    repo: str | None = None
    revision: str | None = None
    weights: str | None = None
    parts: tuple[PartFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One image. Sizes in pixels; `guidance` 1 means no classifier-free guidance.

    `references` are the images given, in the order in which the model sees them. With a `mask`, the
    first of them is the source, `width` and `height` are those at which its box is painted, and the
    image has the source's own size. `adapters` are added in their order. Raises UsageError when a
    value cannot make an image.
    """

    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    model: str
    negative_prompt: str | None = None
    references: tuple[Reference, ...] = ()
    mask: Mask | None = None
    adapters: tuple[Adapter, ...] = ()

    def __post_init__(self) -> None:
        for what, text in (("prompt", self.prompt), ("negative prompt", self.negative_prompt)):
            if text is not None and len(text) > MAX_PROMPT:
                raise UsageError(
                    f"the {what} has {len(text):,} characters",
                    f"use at most {MAX_PROMPT:,}, of which a model reads the first few thousand",
                )
        check_sides(self.width, self.height)
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(
                f"seed {self.seed} is out of range", f"use a whole number from 0 to {MAX_SEED}"
            )
        if not 1 <= self.steps <= MAX_STEPS:
            raise UsageError(
                f"steps {self.steps} is out of range", f"use a whole number from 1 to {MAX_STEPS}"
            )
        check_guidance(self.guidance)
        for count, most, what in (
            (len(self.references), MAX_REFERENCES, "images are"),
            (len(self.adapters), MAX_ADAPTERS, "adapters are"),
        ):
            if count > most:
                raise UsageError(f"{count} {what} given", f"give at most {most}")
        if self.mask is not None and not self.references:
            raise UsageError("a mask is given, and no image", "give the image that it is of")

    def digests(self) -> Iterator[str]:
        """Those of the files of its images, a mask's last."""
        yield from (reference.sha256 for reference in self.references)
        if self.mask is not None and self.mask.sha256 is not None:
            yield self.mask.sha256

    @property
    def shape(self) -> Shape:
        """Recipes that share it can be denoised as one batch."""
        return Shape(
            self.width,
            self.height,
            self.steps,
            self.guidance,
            tuple((given.width, given.height) for given in self.references),
            self.mask is not None,
            self.adapters,
        )


def recorded(recipe: Recipe) -> dict[str, Any]:
    """A recipe as it is written into records and sent: ready for JSON.

    One of words alone is written as it was before there was anything else.
    """
    return _without_empty(asdict(recipe), _SINCE_FORMAT_3)


def identity(recipe: Recipe) -> dict[str, Any]:
    """All that an image depends on, and nothing else: the names of files are left out."""
    said = recorded(recipe)
    for given in (*said.get("references", ()), *said.get("adapters", ())):
        del given["name"]
    if "mask" in said:
        del said["mask"]["name"]
    return said


def recorded_model(model: Model) -> dict[str, Any]:
    """A model as it is written into records, ready for JSON."""
    return _without_empty(asdict(model), ("parts",))


def recorded_shape(shape: Shape) -> dict[str, Any]:
    """What a batch shares as events tell it, ready for JSON."""
    adapters = tuple(asdict(adapter) for adapter in shape.adapters)
    table = shape._replace(adapters=())._asdict() | {"adapters": adapters}
    return _without_empty(table, ("references", "masked", "adapters"))


_SINCE_FORMAT_3 = ("references", "mask", "adapters")


def _without_empty(table: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in names or value}


def check_guidance(guidance: float) -> None:
    """Raise UsageError for a number that is not a valid guidance, NaN among them."""
    if not 0.0 <= guidance <= 100.0:
        raise UsageError(f"guidance {guidance} is out of range", "use a number from 0 to 100")


def check_sides(width: int, height: int) -> None:
    """Raise UsageError for sides in pixels that no image has."""
    _check_side("width", width)
    _check_side("height", height)


def _check_side(name: str, pixels: int) -> None:
    if pixels <= 0 or pixels % PIXELS_PER_TOKEN:
        below = max(PIXELS_PER_TOKEN, pixels // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN)
        near = str(below) if pixels <= below else f"{below} or {below + PIXELS_PER_TOKEN}"
        raise UsageError(f"{name} {pixels} is not a multiple of {PIXELS_PER_TOKEN}", f"use {near}")
    if pixels > MAX_SIDE:
        raise UsageError(f"{name} {pixels} is too large", f"use at most {MAX_SIDE}")


def _check_file(sha256: str, name: str) -> None:
    if not _SHA256.fullmatch(sha256):
        raise UsageError(f"{sha256[:80]!r} is not the SHA-256 of a file", _DAMAGED_RECIPE)
    if len(name) > _MAX_NAME or "/" in name or "\\" in name:
        raise UsageError(f"{name[:80]!r} is not the name of a file", _DAMAGED_RECIPE)


def _four(what: str, pixels: tuple[int, ...]) -> tuple[int, ...]:
    """Four sides or edges, in pixels. Raises UsageError."""
    if len(pixels) != 4 or not all(0 <= each <= MAX_SOURCE_SIDE for each in pixels):
        raise UsageError(
            f"the {what} {list(pixels)[:8]} is not left, top, right and bottom",
            f"use four numbers of pixels from 0 to {MAX_SOURCE_SIDE}",
        )
    return pixels
