"""Edits of the `tiny` world: what is asked of a picture, and the one right picture after it.

An edit is chosen in words' terms here (`Edit`); `Edits` are a batch of them as tensors, which
`lay_out` places and `change` carries out. The picture after an edit is made from the pixels of the
one before, so that what is not named stays as it was, soft edges included.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import combinations

import tiny_world as world
import torch
from tiny_world import COLOURS, RELATIONS, SHAPES, Composition, Thing
from torch import Tensor

KINDS = ("recolour", "turn", "background", "remove", "add")
RECOLOUR, TURN, BACKGROUND, REMOVE, ADD = range(len(KINDS))
MOST = 3
"""A picture to edit holds at most so many things."""
GAP = 0.03
"""Between an added thing and the one that it is added beside: a fraction of the shorter side."""
LEAST = 0.055
"""The smallest half-extent to which an added thing shrinks where there is little room."""
AROUND = 6.0
"""So many pixels around a thing count as its edge."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A picture's composition and what to change in it.

    `relation` is that of two things drawn from words, None otherwise. `named` is the index of the
    thing that is changed, removed or added beside. `new` has what the named thing becomes, or what
    is added; its colour alone matters to "recolour" and "background". `keeps` tells a "turn" that
    leaves the colour. `beside` is where the added thing lies from the named one.
    """

    things: tuple[Thing, ...]
    background: str
    relation: str | None
    kind: str
    named: int
    new: Thing
    keeps: bool = False
    beside: str | None = None

    @property
    def source(self) -> Composition:
        """What a prompt would say of the picture before; of two things at most."""
        return Composition(self.things, self.background, self.relation)

    @property
    def things_after(self) -> tuple[Thing, ...]:
        """What the picture holds afterwards; an added thing is the last."""
        thing = self.things[self.named]
        others = self.things[: self.named], self.things[self.named + 1 :]
        if self.kind == "recolour":
            return (*others[0], replace(thing, colour=self.new.colour), *others[1])
        if self.kind == "turn":
            colour = thing.colour if self.keeps else self.new.colour
            return (*others[0], replace(thing, colour=colour, shape=self.new.shape), *others[1])
        if self.kind == "remove":
            return others[0] + others[1]
        return (*self.things, self.new) if self.kind == "add" else self.things

    @property
    def background_after(self) -> str:
        """The background's colour afterwards."""
        return self.new.colour if self.kind == "background" else self.background

    @property
    def held_out(self) -> bool:
        """True where the picture before or after is, or holds, a composition kept from training."""
        before = _kept(self.things, self.background)
        return before or _kept(self.things_after, self.background_after)


def _kept(things: tuple[Thing, ...], background: str) -> bool:
    if len(things) == 1:
        return Composition(things, background).held_out
    return any(Composition(pair, background, "above").held_out for pair in combinations(things, 2))


def draw_edit(
    rng: random.Random, *, kind: str | None = None, held_out: bool = False, plain: bool = False
) -> Edit:
    """A random edit; `plain`: of one or two things, all colours before and after different."""
    while True:
        made = _draw_edit(rng, kind or rng.choices(KINDS, (22, 24, 14, 16, 24))[0], plain)
        if made.held_out == held_out:
            return made


def _draw_edit(rng: random.Random, kind: str, plain: bool) -> Edit:
    count = rng.choices((1, 2, 3), (45, 55, 0) if plain else (38, 52, 10))[0]
    if kind == "add" and count == MOST:
        count = 2
    colours = rng.sample(sorted(COLOURS), count + 2)
    if not plain and count > 1 and rng.random() < 0.08:
        colours[1] = colours[0]
    things = tuple(
        Thing(colours[i], rng.choice(SHAPES), rng.choice((None, None, "small", "large")))
        for i in range(count)
    )
    if len({thing.kind for thing in things}) < count:
        return _draw_edit(rng, kind, plain)
    named, size = rng.randrange(count), None
    colour, shape = colours[-2], rng.choice(SHAPES)
    if not plain and rng.random() < 0.1:
        colour = rng.choice([name for name in COLOURS if name != colours[-1]])
    if kind == "turn":
        shape = rng.choice([name for name in SHAPES if name != things[named].shape])
    if kind == "add":
        size = rng.choice((None, None, "small", "large"))
    if kind == "background":
        colour = colours[-2]
    if kind == "recolour" and colour == things[named].colour:
        colour = colours[-2]
    return Edit(
        things=things,
        background=colours[-1],
        relation=rng.choice(RELATIONS) if count == 2 else None,
        kind=kind,
        named=named,
        new=Thing(colour, shape, size),
        keeps=rng.random() < 0.7,
        beside=rng.choice(RELATIONS) if kind == "add" else None,
    )


@dataclass(slots=True)
class Edits:
    """A batch of edits as tensors, on one device.

    shapes (B, 3) int64, -1 where there is no thing; sizes (B, 3) float32, half-extents; colours
    (B, 4, 3) float32 in [-1, 1], the things' and the background's; said (B, 4) bool, which of these
    colours the words name; relations (B,) int64, or -1; kinds (B,), named (B,) int64; new_shapes
    (B,), new_sizes (B,), new_colours (B, 3); keeps (B,) bool; beside (B,) int64, or -1.
    """

    shapes: Tensor
    sizes: Tensor
    colours: Tensor
    said: Tensor
    relations: Tensor
    kinds: Tensor
    named: Tensor
    new_shapes: Tensor
    new_sizes: Tensor
    new_colours: Tensor
    keeps: Tensor
    beside: Tensor

    def __getitem__(self, rows: Tensor) -> Edits:
        return Edits(*(getattr(self, name)[rows] for name in self.__slots__))

    def to(self, device: torch.device | str) -> Edits:
        """The same batch on another device."""
        return Edits(*(getattr(self, name).to(device) for name in self.__slots__))

    @property
    def stars(self) -> Tensor:
        """(B,) bool: there is a star before or afterwards."""
        star = SHAPES.index("star")
        made = (self.kinds == TURN) | (self.kinds == ADD)
        return (self.shapes == star).any(1) | (made & (self.new_shapes == star))


def as_edits(edits: list[Edit], said: list[tuple[bool, ...]]) -> Edits:
    """Edits as tensors on the CPU; `said` for each: the colours that its words name."""
    names = list(COLOURS)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 127.5 - 1
    rows = []
    for one in edits:
        things = [*one.things, *[one.things[0]] * MOST][:MOST]
        there = [i < len(one.things) for i in range(MOST)]
        shown = [SHAPES.index(t.shape) if is_ else -1 for t, is_ in zip(things, there, strict=True)]
        colours = [*(names.index(t.colour) for t in things), names.index(one.background)]
        rows.append(
            (
                shown,
                [world.SIZES[t.size] for t in things],
                colours,
                -1 if one.relation is None else RELATIONS.index(one.relation),
                KINDS.index(one.kind),
                one.named,
                SHAPES.index(one.new.shape),
                world.SIZES[one.new.size],
                names.index(one.new.colour),
                one.keeps,
                -1 if one.beside is None else RELATIONS.index(one.beside),
            )
        )
    columns = [torch.tensor(list(column)) for column in zip(*rows, strict=True)]
    shapes, sizes, colours, relations, kinds, named, shape, size, colour, keeps, beside = columns
    return Edits(
        shapes, sizes, palette[colours], torch.tensor(said), relations, kinds, named, shape, size,
        palette[colour], keeps, beside,
    )  # fmt: skip


@dataclass(slots=True)
class Layout:
    """Where all things of a batch lie, in pixels of (height, width), and whether that is allowed.

    centres (B, 3, 2) as (x, y); radii (B, 3), scaled half-extents; for what is new (B, 2) and (B,);
    fits (B,) bool: everything is inside and apart, before the edit and afterwards.
    """

    centres: Tensor
    radii: Tensor
    new_centres: Tensor
    new_radii: Tensor
    fits: Tensor

    def __getitem__(self, rows: Tensor) -> Layout:
        return Layout(*(getattr(self, name)[rows] for name in self.__slots__))


def lay_out(edits: Edits, centres: Tensor, extents: Tensor, height: int, width: int) -> Layout:
    """Find out where what is new lies; centres (B, 3, 2) and half-extents (B, 3) in pixels.

    A thing that turns into another keeps its centre and its half-extent. An added one lies straight
    beside the named one: as far away as two things of a drawn picture where there is room, nearer
    where there is not, and smaller where even that does not do.
    """
    side, every = min(height, width), torch.arange(len(edits.named), device=centres.device)
    scales, reach = world.SCALES.to(centres), world.REACH.to(centres)
    radii = extents * scales[edits.shapes.clamp(min=0)]
    own = reach[edits.shapes.clamp(min=0)] * radii[..., None]
    anchor, edge = centres[every, edits.named], own[every, edits.named]
    per_extent = reach[edits.new_shapes] * scales[edits.new_shapes][:, None]
    direction = edits.beside.clamp(min=0)
    # (across, up, down) of REACH: what faces the anchor and what faces the border.
    facing = torch.tensor([2, 1, 0, 0], device=centres.device)[direction][:, None]
    border = torch.tensor([1, 2, 0, 0], device=centres.device)[direction][:, None]
    near, far = per_extent.gather(1, facing)[:, 0], per_extent.gather(1, border)[:, 0]
    edge = edge.gather(1, border)[:, 0]
    ends = torch.stack((anchor[:, 1], height - anchor[:, 1], anchor[:, 0], width - anchor[:, 0]), 1)
    end = ends.gather(1, direction[:, None])[:, 0]
    room = end - edge - (world.MARGIN + GAP) * side
    asked = world.fit_extent(edits.new_sizes, height, width) * side
    added = torch.minimum(asked, room / (near + far))
    nearest, farthest = edge + GAP * side + near * added, end - world.MARGIN * side - far * added
    away = torch.minimum(torch.full_like(end, world.APART * side).maximum(nearest), farthest)
    steps = centres.new_tensor([[0, -1], [0, 1], [-1, 0], [1, 0]])[direction]
    beside = anchor + steps * away[:, None]
    size = per_extent * added[:, None]
    low = world.MARGIN * side + torch.stack((size[:, 0], size[:, 1]), 1)
    high = centres.new_tensor([width, height]) - world.MARGIN * side
    high = high - torch.stack((size[:, 0], size[:, 2]), 1)
    beside = beside.clamp(low, torch.maximum(low, high))
    turns = edits.kinds == TURN
    new_centres = torch.where(turns[:, None], anchor, beside)
    new_extents = torch.where(turns, extents[every, edits.named], added)
    fits = _apart(edits, centres, extents, height, width)
    adds = edits.kinds == ADD
    free = _free(beside, size, centres, own, edits.shapes >= 0, 0.02 * side)
    fits = fits & (~adds | (free & (added >= LEAST * side)))
    return Layout(centres, radii, new_centres, new_extents * scales[edits.new_shapes], fits)


def _apart(edits: Edits, centres: Tensor, extents: Tensor, height: int, width: int) -> Tensor:
    """(B,) bool: any shape of these sizes would be inside the picture and off the others."""
    there = edits.shapes >= 0
    most = extents * world.SCALES.max()
    border = torch.minimum(centres, centres.new_tensor([width, height]) - centres).amin(-1)
    inside = ((border - most > 0.02 * min(height, width)) | ~there).all(1)
    gaps = (centres[:, :, None] - centres[:, None]).abs().amax(-1)
    needed = most[:, :, None] + most[:, None] + 0.02 * min(height, width)
    self_or_none = torch.eye(MOST, dtype=torch.bool, device=centres.device)
    self_or_none = self_or_none | ~there[:, :, None] | ~there[:, None]
    return inside & ((gaps > needed) | self_or_none).flatten(1).all(1)


def _free(
    centre: Tensor, size: Tensor, centres: Tensor, own: Tensor, there: Tensor, gap: float
) -> Tensor:
    """(B,) bool: the box of what is added meets none of the boxes that are there."""
    offset = centres - centre[:, None]
    across = offset[..., 0].abs() - own[..., 0] - size[:, None, 0]
    below = offset[..., 1] - own[..., 1] - size[:, None, 2]
    above = -offset[..., 1] - own[..., 2] - size[:, None, 1]
    return ((torch.stack((across, below, above)).amax(0) > gap) | ~there).all(1)


def change(edits: Edits, layout: Layout, colours: Tensor, before: Tensor) -> Tensor:
    """The pictures (B, 3, H, W) in [-1, 1] after the edits of `before`.

    `colours` (B, 4, 3) are those in the picture, which may differ a little from the names'. How
    much each pixel belongs to a thing is read off the picture itself.
    """
    height, width = before.shape[-2:]
    kinds, background = edits.kinds, colours[:, 3]
    vanishes = (kinds == TURN) | (kinds == REMOVE)
    every = torch.arange(len(kinds), device=before.device)
    new_background = torch.where((kinds == BACKGROUND)[:, None], edits.new_colours, background)
    after, rest = before, torch.ones_like(before[:, 0])
    for i in range(MOST):
        mine = (edits.named == i)[:, None]
        old = colours[:, i]
        new = torch.where(mine & (kinds == RECOLOUR)[:, None], edits.new_colours, old)
        new = torch.where(mine & vanishes[:, None], new_background, new)
        share = _share(before, old, background)
        around = world.distances(
            edits.shapes[:, i], layout.centres[:, i], layout.radii[:, i], height, width
        )
        share = share * (around < AROUND) * (edits.shapes[:, i] >= 0)[:, None, None]
        after = after + share[:, None] * (new - old)[:, :, None, None]
        rest = rest - share
    after = after + rest[:, None] * (new_background - background)[:, :, None, None]
    made = (kinds == TURN) | (kinds == ADD)
    shapes = torch.where(made, edits.new_shapes, -1)
    keeps = (edits.keeps & (kinds == TURN))[:, None]
    new = torch.where(keeps, colours[every, edits.named], edits.new_colours)
    covered = world.cover(shapes, layout.new_centres, layout.new_radii, height, width)
    return world.paint(after, covered, new).clamp(-1, 1)


def _share(picture: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """(B, H, W) from 0 to 1: where each pixel lies on the way from background to colour."""
    way = colour - background
    off = picture - background[:, :, None, None]
    along = (off * way[:, :, None, None]).sum(1)
    return (along / way.square().sum(1).clamp(min=1e-3)[:, None, None]).clamp(0, 1)
