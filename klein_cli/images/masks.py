"""A source, and what of it is repainted -> what the loop needs of both.

A mask is white where the source is repainted. A source of at most 1 MP is painted whole; of a
larger one a box around the mask is, so that a small mask gets all of the model's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from klein_cli.errors import UsageError
from klein_cli.images.composite import composite
from klein_cli.images.depth import channels
from klein_cli.images.files import Source, check_size, file_bytes, name_of, opened
from klein_cli.images.levels import over
from klein_cli.images.reading import Picture, digest, orientation, upright
from klein_cli.images.references import MAX_AREA, capped_size, floored
from klein_cli.recipe import PIXELS_PER_TOKEN

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels of the source; the last two are not inside."""
Expand = tuple[int, int, int, int]
"""Pixels to paint beyond the left, top, right and bottom edges."""

WHITE = 128
"""From this level on a mask is white; an alpha below it is transparent."""
MIN_BOX = 512
MAX_BOX_ASPECT = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskImage:
    """A mask's file: `white` (H, W) bool, where the source is repainted."""

    white: NDArray[numpy.bool_] = field(repr=False)
    sha256: str
    name: str

    @property
    def nbytes(self) -> int:
        """What it takes of memory."""
        return self.white.nbytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskedSource:
    """A source, expanded if it is to be, with what of it is repainted (`white`, (H, W) bool).

    `box` is the part that is painted.
    """

    picture: Picture
    white: NDArray[numpy.bool_] = field(repr=False)
    box: Box

    @property
    def painted_size(self) -> tuple[int, int]:
        """Width and height of the box as the model sees and paints it."""
        return painted_size(self.box)

    def pixels(self) -> NDArray[numpy.uint8]:
        """(h, w, 3) uint8 of `painted_size`: the box as the model sees it, mask and all.

        Stretched by LANCZOS where its sides are no multiples of 16, as Flux2KleinInpaintPipeline
        does, or larger than 1 MP.
        """
        import numpy
        from PIL import Image

        left, top, right, bottom = self.box
        cut = Image.fromarray(self.picture.rgb[top:bottom, left:right])
        if cut.size != self.painted_size:
            cut = cut.resize(self.painted_size, Image.Resampling.LANCZOS)
        return numpy.asarray(cut)

    def tokens(self) -> NDArray[numpy.bool_]:
        """(h/16 * w/16,) bool, row by row: the tokens that are repainted.

        One is if any pixel that it covers is white, so that thin strokes count.
        """
        left, top, right, bottom = self.box
        width, height = self.painted_size
        cut = self.white[top:bottom, left:right]
        rows = _any_by(cut, height // PIXELS_PER_TOKEN)
        return _any_by(rows.T, width // PIXELS_PER_TOKEN).T.reshape(-1)

    def composite(
        self, painted: NDArray[numpy.uint8], *, blur: int = 0, keep: bool = True
    ) -> NDArray[Any]:
        """(H, W, 3), or (H, W, 4) of a transparent source: the result, of the source's size,
        profile and bits a channel.

        `painted` is (h, w, 3) uint8 sRGB of `painted_size`. Outside the mask every pixel is the
        source's own, bit for bit; `blur` is how many pixels inside the mask's edge it takes to be
        all painted. What is repainted is opaque. Without `keep` the whole box is as it was painted.
        """
        return composite(self.picture, painted, self.white, self.box, blur=blur, keep=keep)


def read_mask(source: Source, *, name: str | None = None) -> MaskImage:
    """Read a mask's file: gray after EXIF orientation, over black where it is transparent.

    Raises UsageError for what `reading.read` does not read.
    """
    import numpy

    name = name_of(source, name)
    data = file_bytes(source, name)
    with opened(data, name) as image:
        found = channels(image, data, name)
        colours = found.colours if found.colours.mode != "LAB" else found.colours.getchannel("L")
        gray = numpy.asarray(colours.convert("L"))
        if found.alpha is not None:
            gray = over(gray[:, :, None], numpy.asarray(found.alpha), white=False)[:, :, 0]
        gray = upright(gray, orientation(image, data))
    return MaskImage(white=gray >= WHITE, sha256=digest(data), name=name)


def masked_source(
    picture: Picture,
    mask: MaskImage | None = None,
    *,
    alpha: bool = False,
    expand: Expand | None = None,
    box: Box | None = None,
) -> MaskedSource:
    """What is repainted: a mask's white, what `alpha` leaves transparent, what `expand` adds.

    `box` is the part to paint, found from the mask unless it is given (by a recipe). Raises
    UsageError for a mask of another size, one without white, an alpha that is not there, and a
    source that becomes too large.
    """
    transparent = _transparent(picture) if alpha else None
    white = repainted(
        picture.width, picture.height, picture.name, mask, transparent=transparent, expand=expand
    )
    if expand is not None:
        picture = expanded(picture, expand)
    return MaskedSource(picture=picture, white=white, box=_checked(box, white))


def repainted(
    width: int,
    height: int,
    name: str,
    mask: MaskImage | None,
    *,
    transparent: NDArray[numpy.bool_] | None = None,
    expand: Expand | None = None,
) -> NDArray[numpy.bool_]:
    """(H, W) bool of the source `name`, expanded: where it is repainted. As `masked_source`, for
    a source that need not be decoded.
    """
    import numpy

    white = numpy.zeros((height, width), dtype=bool)
    if mask is not None:
        _check_fits(mask, width, height, name)
        white |= mask.white
    if transparent is not None:
        white |= transparent
    if expand is not None:
        _check_expand(width, height, name, expand)
        left, top, right, bottom = expand
        white = numpy.pad(white, ((top, bottom), (left, right)), constant_values=True)
    if not white.any():
        named = f"the mask {mask.name}" if mask is not None else f"the alpha of {name}"
        raise UsageError(
            f"{named} leaves nothing to repaint", "white (with alpha: transparent) is repainted"
        )
    return white


def expanded(picture: Picture, expand: Expand) -> Picture:
    """`picture` with room beyond its edges, where its outermost pixels are repeated."""
    import numpy

    _check_expand(picture.width, picture.height, picture.name, expand)
    left, top, right, bottom = expand
    room = ((top, bottom), (left, right))

    def grown(array: NDArray[Any]) -> NDArray[Any]:
        return numpy.pad(array, (*room, (0, 0))[: array.ndim], mode="edge")

    return picture.mapped(grown)


def box_of(white: NDArray[numpy.bool_]) -> Box:
    """The part of a source that is painted for its mask, (H, W) bool.

    Up to 1 MP the whole. Above, the smallest rectangle around the mask with a quarter of its sides
    as room on each side, at least MIN_BOX pixels a side and no narrower than MAX_BOX_ASPECT, within
    the source; sides are multiples of 16 where that is possible.
    """
    import numpy

    height, width = white.shape
    if width * height <= MAX_AREA:
        return (0, 0, width, height)
    columns, rows = (numpy.flatnonzero(white.any(axis=axis)) for axis in (0, 1))
    across, down = (int(columns[0]), int(columns[-1]) + 1), (int(rows[0]), int(rows[-1]) + 1)
    longest = max(min(_with_room(*across), width), min(_with_room(*down), height))
    least = max(MIN_BOX, -(-longest // MAX_BOX_ASPECT))
    left, right = _span(*across, least, width)
    top, bottom = _span(*down, least, height)
    return (left, top, right, bottom)


def painted_size(box: Box) -> tuple[int, int]:
    """Width and height at which a box is painted: at most 1 MP, multiples of 16, never enlarged."""
    left, top, right, bottom = box
    width, height = capped_size(right - left, bottom - top)
    return floored(width), floored(height)


def _with_room(start: int, end: int) -> int:
    return end - start + 2 * -(-(end - start) // 4)


def _span(start: int, end: int, least: int, limit: int) -> tuple[int, int]:
    """Where a box begins and ends along one side that is `limit` long."""
    length = min(
        -(-max(_with_room(start, end), least) // PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN, limit
    )
    if floored(length) >= end - start:
        length = floored(length)
    begin = min(max((start + end - length) // 2, 0), limit - length)
    return begin, begin + length


def _any_by(white: NDArray[numpy.bool_], parts: int) -> NDArray[numpy.bool_]:
    """(N, M) -> (parts, M): whether any is white of what each of so many equal parts touches."""
    import numpy

    length = white.shape[0]
    starts = [part * length // parts for part in range(parts)]
    ends = [-(-(part + 1) * length // parts) for part in range(parts)]
    return numpy.stack(
        [white[start:end].any(axis=0) for start, end in zip(starts, ends, strict=True)]
    )


def _transparent(picture: Picture) -> NDArray[numpy.bool_]:
    if picture.alpha is None:
        raise UsageError(
            f"{picture.name} has no transparent part", "give --mask a file, or an image with alpha"
        )
    return picture.alpha < WHITE


def _check_fits(mask: MaskImage, width: int, height: int, name: str) -> None:
    high, wide = mask.white.shape
    if (wide, high) != (width, height):
        raise UsageError(
            f"the mask {mask.name} is {wide}x{high}, and {name} is {width}x{height}",
            "give a mask of the size of the image",
        )


def _check_expand(width: int, height: int, name: str, expand: Expand) -> None:
    left, top, right, bottom = expand
    if min(expand) < 0 or not any(expand):
        raise UsageError(f"{expand} is not a valid expansion", "give pixels, as 256 or 0,0,256,0")
    check_size(width + left + right, height + top + bottom, f"{name}, expanded,")


def _checked(box: Box | None, white: NDArray[numpy.bool_]) -> Box:
    if box is None:
        return box_of(white)
    height, width = white.shape
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise UsageError(
            f"the box {box} is not inside the image of {width}x{height}", "leave it out"
        )
    return box
