"""The closed world of the `tiny` model: what its pictures hold, and how they are drawn.

A composition names one or two flat shapes, their colours, an optional size and relation, and the
background. Everything a prompt leaves open (where, how large) is a fixed function of the noise that
the picture is denoised from, so each pair of prompt and noise has exactly one right picture.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 215, 40),
    "green": (40, 160, 70),
    "blue": (40, 90, 220),
    "purple": (140, 60, 180),
    "white": (248, 248, 248),
    "black": (18, 18, 18),
}
SHAPES = ("circle", "square", "triangle", "star")
RELATIONS = ("above", "below", "left", "right")

# Half-extents as a fraction of the shorter side, before each shape's own scale.
SIZES = {"small": 0.10, None: 0.13, "large": 0.16}
SMALLEST, LARGEST = SIZES["small"], SIZES["large"]
# Fractions of the shorter side: the margin to the edges, and how far apart two centres are.
MARGIN, APART = 0.03, 0.44
STAR_INNER = 0.40
# Multiples of the half-extent, chosen so that the four shapes look alike in size: the circle's
# radius, half the square's side, the triangle's and the star's circumradius.
SCALES = torch.tensor([1.0, 0.9, 1.3, 1.3])
# How far each shape reaches from its centre in multiples of that: (left and right, up, down).
REACH = torch.tensor(
    [
        [1.0, 1.0, 1.0],
        [1.0, 1.0, 1.0],
        [math.sqrt(0.75), 1.0, 0.5],
        [math.sin(math.radians(72)), 1.0, math.cos(math.radians(36))],
    ]
)
LAYOUT_CHANNELS = (16, 31)
"""The latent channels whose noise decides across and down."""
CHECKERS = (0.5, -0.5, -0.5, 0.5)
"""The layout is read off each channel's 2 x 2 patches with these signs. Pictures hold next to
nothing of that pattern (.01 in the mean over a picture, where noise has .06), so that the noise's
share can be read at every noise level; a plain mean drowns in the background's colour."""
SPREAD = 0.6
"""How much of the room that there is the places take up, around the middle."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: a colour and shape by name, and "small", "large" or None."""

    colour: str
    shape: str
    size: str | None = None

    @property
    def kind(self) -> tuple[str, str]:
        """What it is, whatever its size."""
        return self.colour, self.shape


@dataclass(frozen=True, slots=True)
class Composition:
    """One or two things on a background; `relation` says where the first lies from the second."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None

    @property
    def held_out(self) -> bool:
        """True for the tenth part of all compositions that training never sees.

        One thing: its colour, shape and background. Two: both colours and shapes, in any order,
        on any background, in any relation.
        """
        if len(self.things) == 1:
            key = f"{self.things[0].kind} on {self.background}"
        else:
            key = " & ".join(sorted(str(thing.kind) for thing in self.things))
        return hashlib.sha256(key.encode()).digest()[0] < 26


def singles(*, held_out: bool) -> list[Composition]:
    """Every composition of one thing without a size, held out or not."""
    every = (
        Composition((Thing(colour, shape),), background)
        for colour, shape, background in product(COLOURS, SHAPES, COLOURS)
        if colour != background
    )
    return [one for one in every if one.held_out == held_out]


def draw_composition(rng: random.Random, *, pairs: float, held_out: bool = False) -> Composition:
    """A random composition, of two things with probability `pairs`."""
    while True:
        colours = rng.sample(sorted(COLOURS), 3)
        count = 2 if rng.random() < pairs else 1
        things = tuple(
            Thing(colours[i], rng.choice(SHAPES), rng.choice((None, None, "small", "large")))
            for i in range(count)
        )
        relation = rng.choice(RELATIONS) if count == 2 else None
        made = Composition(things, colours[2], relation)
        if made.held_out == held_out:
            return made


@dataclass(slots=True)
class Scenes:
    """A batch of compositions as tensors, on one device.

    shapes (B, 2) int64 with -1 for no second thing; sizes (B, 2) float32, the half-extents;
    colours (B, 3, 3) float32 in [-1, 1], the two things' and the background's; relations (B,)
    int64, an index into RELATIONS or -1.
    """

    shapes: Tensor
    sizes: Tensor
    colours: Tensor
    relations: Tensor

    def __getitem__(self, rows: Tensor) -> Scenes:
        return Scenes(self.shapes[rows], self.sizes[rows], self.colours[rows], self.relations[rows])

    def to(self, device: torch.device | str) -> Scenes:
        """The same batch on another device."""
        return Scenes(*(getattr(self, name).to(device) for name in self.__slots__))

    @property
    def stars(self) -> Tensor:
        """(B,) bool: there is a star."""
        return (self.shapes == SHAPES.index("star")).any(1)


def as_scenes(compositions: list[Composition]) -> Scenes:
    """Compositions as tensors on the CPU."""
    names = list(COLOURS)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 127.5 - 1
    shapes, sizes, colours, relations = [], [], [], []
    for one in compositions:
        things = [*one.things, *one.things][:2]
        shapes.append([SHAPES.index(things[0].shape), SHAPES.index(things[1].shape)])
        if one.relation is None:
            shapes[-1][1] = -1
        sizes.append([SIZES[thing.size] for thing in things])
        colours.append(
            [names.index(name) for name in (things[0].colour, things[1].colour, one.background)]
        )
        relations.append(-1 if one.relation is None else RELATIONS.index(one.relation))
    return Scenes(
        torch.tensor(shapes),
        torch.tensor(sizes),
        palette[torch.tensor(colours)],
        torch.tensor(relations),
    )


def layout_means(noise: Tensor) -> Tensor:
    """(B, 2) float32: what of the noise (B, 128, h, w) decides the layout."""
    patches = noise.unflatten(1, (-1, 4))[:, LAYOUT_CHANNELS].float().mean((3, 4))
    return patches @ noise.new_tensor(CHECKERS, dtype=torch.float32)


def with_layout(noise: Tensor, means: Tensor) -> Tensor:
    """The noise (B, 128, h, w), moved along the layout's pattern until its means are `means`."""
    shift = means - layout_means(noise)
    patches = noise.unflatten(1, (-1, 4)).clone()
    signs = noise.new_tensor(CHECKERS)
    patches[:, LAYOUT_CHANNELS] += (shift[..., None] * signs)[..., None, None]
    return patches.flatten(1, 2)


def layout_uniforms(means: Tensor, tokens: int) -> Tensor:
    """(B, 2) float32, independent and exactly uniform on (0, 1).

    The noise is standard normal; so is a unit pattern's mean over `tokens` tokens times their root,
    and the normal distribution function makes it uniform.
    """
    return torch.special.ndtr(means * math.sqrt(tokens))


def lay_out(scenes: Scenes, u: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Centres (B, 2, 2) as (x, y) and scaled half-extents (B, 2), in pixels.

    Size follows the words alone. The noise says where: one thing lies around the middle, within
    SPREAD of where it fits; two lie a fixed distance apart along their relation's axis, and their
    middle around that of the picture.
    """
    side = min(height, width)
    scale = SCALES.to(u.device)
    radii = fit_extent(scenes.sizes, height, width) * scale[scenes.shapes.clamp(min=0)] * side
    pair = scenes.relations >= 0
    vertical = pair & (scenes.relations < 2)
    apart = APART * side * pair
    # The largest of all shapes fits at either end of these ranges.
    reach = MARGIN * side + scale.max() * side * torch.where(
        pair, LARGEST, _extent(scenes, height, width)
    )
    along_x = torch.where(vertical, 0.0, apart / 2)
    along_y = torch.where(vertical, apart / 2, 0.0)
    x = _between(reach + along_x, width - reach - along_x, u[:, 0])
    y = _between(reach + along_y, height - reach - along_y, u[:, 1])
    # The first thing lies above or to the left of the middle, unless the relation is the reverse.
    sign = torch.where((scenes.relations == 1) | (scenes.relations == 3), -1.0, 1.0)
    offset = torch.stack((sign * along_x, sign * along_y), -1)
    middle = torch.stack((x, y), -1)
    return torch.stack((middle - offset, middle + offset), 1), radii


def _extent(scenes: Scenes, height: int, width: int) -> Tensor:
    return fit_extent(scenes.sizes[:, 0], height, width)


def render(scenes: Scenes, centres: Tensor, radii: Tensor, height: int, width: int) -> Tensor:
    """(B, 3, height, width) float32 in [-1, 1], edges smoothed over one pixel."""
    picture = scenes.colours[:, 2, :, None, None].expand(-1, -1, height, width)
    for i in range(2):
        shapes, colours = scenes.shapes[:, i], scenes.colours[:, i]
        picture = paint(picture, cover(shapes, centres[:, i], radii[:, i], height, width), colours)
    return picture


def cover(
    shapes: Tensor,
    centres: Tensor,
    radii: Tensor,
    height: int,
    width: int,
    soft: Tensor | float = 1,
) -> Tensor:
    """(B, height, width) float32: how much of each pixel a shape covers; nothing for shape -1.

    Edges are smoothed over `soft` pixels, one number or (B, 1, 1).
    """
    distance = distances(shapes, centres, radii, height, width)
    return (0.5 - distance / soft).clamp(0, 1) * (shapes >= 0)[:, None, None]


def distances(shapes: Tensor, centres: Tensor, radii: Tensor, height: int, width: int) -> Tensor:
    """(B, height, width): how far each pixel lies outside its shape, in pixels; negative inside."""
    y = torch.arange(height, device=centres.device, dtype=torch.float32)[None, :, None] + 0.5
    x = torch.arange(width, device=centres.device, dtype=torch.float32)[None, None, :] + 0.5
    dx, dy = x - centres[:, 0, None, None], y - centres[:, 1, None, None]
    return _signed_distance(shapes, dx, dy, radii[:, None, None])


def paint(picture: Tensor, covered: Tensor, colours: Tensor) -> Tensor:
    """The picture (B, 3, H, W) with a colour (B, 3) laid over what is covered (B, H, W)."""
    return picture + covered[:, None] * (colours[:, :, None, None] - picture)


def draw(scenes: Scenes, means: Tensor, grid: tuple[int, int]) -> Tensor:
    """The one right picture (B, 3, 16 h, 16 w) for each composition and its noise's means."""
    height, width = 16 * grid[0], 16 * grid[1]
    centres, radii = lay_out(scenes, layout_uniforms(means, grid[0] * grid[1]), height, width)
    return render(scenes, centres, radii, height, width)


def fit_extent(extent: Tensor, height: int, width: int) -> Tensor:
    """Half-extents moved up, in order, where the smallest would be too small for a long picture."""
    smallest = max(SMALLEST, 0.784 * SMALLEST * math.sqrt(height * width) / min(height, width))
    return smallest + (extent - SMALLEST) * (LARGEST - smallest) / (LARGEST - SMALLEST)


def _between(low: Tensor, high: Tensor, u: Tensor) -> Tensor:
    return low + (high - low).clamp(min=0) * (0.5 + SPREAD * (u - 0.5))


def _signed_distance(shape: Tensor, dx: Tensor, dy: Tensor, r: Tensor) -> Tensor:
    """Distance in pixels to each shape's nearest edge, negative inside; dy points down."""
    circle = (dx.square() + dy.square()).sqrt() - r
    square = torch.maximum(dx.abs(), dy.abs()) - r
    half = math.sqrt(0.75)
    triangle = torch.maximum(dy - 0.5 * r, half * dx.abs() - 0.5 * dy - 0.5 * r)
    # A fifth of the star, folded on its axis: one straight edge from the tip to the inner corner.
    fifth = math.tau / 5
    angle = torch.atan2(dx, -dy)
    folded = ((angle + fifth / 2).remainder(fifth) - fifth / 2).abs()
    radius = (dx.square() + dy.square()).sqrt()
    px, py = radius * folded.cos(), radius * folded.sin()
    corner_x, corner_y = STAR_INNER * math.cos(fifth / 2), STAR_INNER * math.sin(fifth / 2)
    length = math.hypot(1 - corner_x, corner_y)
    star = ((px - r) * corner_y + py * (1 - corner_x)) / length
    kind = shape[:, None, None]
    return torch.where(
        kind == 0, circle, torch.where(kind == 1, square, torch.where(kind == 2, triangle, star))
    )
