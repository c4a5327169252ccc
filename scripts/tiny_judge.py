"""Judge pictures of the `tiny` world by their pixels alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tiny_world as world
import torch
from PIL import Image, ImageDraw

TOLERANCE = 15
"""How far a median colour may be from its name's, per channel, of 255."""
MIN_AREA = 0.01
SHAPE_OVERLAP, SMALL_OVERLAP = 0.90, 0.80
"""How much of an object must overlap the best-fitting shape (intersection over union); the lower
bound is for boxes under 60 pixels, where a star's points are thinner than one."""
STRAY = 0.004
"""How much of the picture may be a colour that it should not hold."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One object as the judge sees it: its pixels (H, W) bool and what follows from them."""

    mask: np.ndarray
    area: float
    box: tuple[int, int, int, int]
    centre: tuple[float, float]
    shape: str
    overlap: float
    whole: float


def judge(picture: np.ndarray, composition: world.Composition) -> list[str]:
    """Everything wrong with an (H, W, 3) uint8 picture of `composition`; empty when it is right."""
    labels = nearest_colours(picture)
    wrong = judge_background(picture, labels, composition.background)
    seen = []
    for thing in composition.things:
        mask = labels == list(world.COLOURS).index(thing.colour)
        found = look(mask)
        if found is None:
            wrong.append(f"no {thing.colour} {thing.shape}")
            continue
        seen.append(found)
        wrong += _judge_thing(picture, found, thing)
    expected = {composition.background, *(thing.colour for thing in composition.things)}
    for i, name in enumerate(world.COLOURS):
        if name not in expected and interior(labels == i).mean() > STRAY:
            wrong.append(f"stray {name}")
    if len(seen) == 2 and composition.relation and not related(*seen, composition.relation):
        wrong.append(f"not {composition.relation}")
    return wrong


def nearest_colours(picture: np.ndarray) -> np.ndarray:
    """(H, W) int: the index of each pixel's nearest colour name."""
    palette = np.array(list(world.COLOURS.values()), dtype=np.int32)
    distance = ((picture[..., None, :].astype(np.int32) - palette) ** 2).sum(-1)
    return distance.argmin(-1)


def interior(mask: np.ndarray, by: int = 2) -> np.ndarray:
    """The mask without the pixels near its edge, where colours mix."""
    padded = np.pad(mask, by)
    out = mask.copy()
    height, width = mask.shape
    for dy in range(2 * by + 1):
        for dx in range(2 * by + 1):
            out &= padded[dy : dy + height, dx : dx + width]
    return out


def look(mask: np.ndarray) -> Seen | None:
    """What the largest connected patch of a mask is, or None where there is nothing."""
    patch = largest_patch(mask)
    if patch is None:
        return None
    rows, columns = np.nonzero(patch)
    box = (int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
    cut = patch[box[0] : box[2], box[1] : box[3]]
    fits = {shape: overlap(cut, template(shape, *cut.shape)) for shape in world.SHAPES}
    shape = max(fits, key=lambda name: fits[name])
    core = interior(mask)
    whole = (core & patch).sum() / max(1, core.sum())
    return Seen(
        mask=patch,
        area=float(patch.mean()),
        box=box,
        centre=(float(rows.mean()), float(columns.mean())),
        shape=shape,
        overlap=fits[shape],
        whole=float(whole),
    )


def largest_patch(mask: np.ndarray) -> np.ndarray | None:
    """The largest connected patch that is more than a thin line, or None."""
    left, best = interior(mask, 1), None
    while left.any() and (best is None or left.sum() > best.sum()):
        seed = np.zeros_like(mask)
        seed.flat[left.argmax()] = True
        patch = _flood(seed, mask)
        left &= ~patch
        if best is None or patch.sum() > best.sum():
            best = patch
    return best


def _flood(patch: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Everything in `mask` that is connected to `patch` by edges."""
    while True:
        grown = patch.copy()
        grown[1:] |= patch[:-1]
        grown[:-1] |= patch[1:]
        grown[:, 1:] |= patch[:, :-1]
        grown[:, :-1] |= patch[:, 1:]
        grown &= mask
        if (grown == patch).all():
            return patch
        patch = grown


def template(shape: str, height: int, width: int, inner: float = world.STAR_INNER) -> np.ndarray:
    """(height, width) bool: the upright shape stretched to fill the box."""
    scale = 8
    image = Image.new("1", (width * scale, height * scale))
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((0, 0, width * scale - 1, height * scale - 1), fill=1)
    else:
        points = _corners(shape, inner)
        low, high = points.min(0), points.max(0)
        fitted = (points - low) / (high - low) * [width * scale - 1, height * scale - 1]
        draw.polygon([tuple(point) for point in fitted], fill=1)
    blocks = np.asarray(image).reshape(height, scale, width, scale)
    return blocks.mean((1, 3)) >= 0.5


def _corners(shape: str, inner: float) -> np.ndarray:
    if shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=float)
    count = 3 if shape == "triangle" else 10
    angles = np.arange(count) * 2 * np.pi / count
    radii = np.where(np.arange(count) % 2, inner, 1.0) if shape == "star" else np.ones(count)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], -1)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def judge_background(picture: np.ndarray, labels: np.ndarray, name: str) -> list[str]:
    """What is wrong with the background, which should be of that colour."""
    mask = labels == list(world.COLOURS).index(name)
    border = np.concatenate(
        [mask[:3].ravel(), mask[-3:].ravel(), mask[:, :3].ravel(), mask[:, -3:].ravel()]
    )
    if border.mean() < 0.98:
        return [f"background not {name}"]
    off = colour_error(picture[mask], name)
    return [f"background {name} off by {off}"] if off > TOLERANCE else []


def _judge_thing(picture: np.ndarray, seen: Seen, thing: world.Thing) -> list[str]:
    wanted = float(world.fit_extent(torch.tensor(world.SIZES[thing.size]), *picture.shape[:2]))
    return shape_errors(picture, seen, thing, wanted)


def shape_errors(picture: np.ndarray, seen: Seen, thing: world.Thing, wanted: float) -> list[str]:
    """What is wrong with one thing, whose half-extent should be `wanted` of the shorter side."""
    wrong = []
    core = interior(seen.mask)
    off = colour_error(picture[core if core.any() else seen.mask], thing.colour)
    if off > TOLERANCE:
        wrong.append(f"{thing.colour} off by {off}")
    if seen.area < MIN_AREA * min(1.0, wanted / world.SMALLEST) ** 2:
        wrong.append(f"{thing.colour} {thing.shape} too small")
    top, left, bottom, right = seen.box
    small = min(bottom - top, right - left) < 60
    if seen.shape != thing.shape or seen.overlap < (SMALL_OVERLAP if small else SHAPE_OVERLAP):
        wrong.append(f"{thing.shape} looks like a {seen.shape} ({seen.overlap:.2f})")
    if seen.whole < 0.98:
        wrong.append(f"{thing.colour} in pieces")
    if min(top, left, picture.shape[0] - bottom, picture.shape[1] - right) < 1:
        wrong.append(f"{thing.shape} cut off")
    if not 0.8 <= _aspect(seen) / _ideal_aspect(thing.shape) <= 1.25:
        wrong.append(f"{thing.shape} stretched")
    extent = half_extent(seen, thing.shape) / min(picture.shape[:2])
    if not 0.88 <= extent / wanted <= 1.12:
        wrong.append(f"{thing.shape} not {thing.size or 'of usual size'} ({extent:.3f})")
    return wrong


def _aspect(seen: Seen) -> float:
    top, left, bottom, right = seen.box
    return (right - left) / (bottom - top)


def _ideal_aspect(shape: str) -> float:
    points = _corners(shape, world.STAR_INNER) if shape != "circle" else np.array([(0, 0), (1, 1)])
    width, height = points.max(0) - points.min(0)
    return float(width / height)


def half_extent(seen: Seen, shape: str) -> float:
    """The object's half-extent in the world's measure, in pixels, from its box's width."""
    index = world.SHAPES.index(shape)
    reach = 2 * float(world.REACH[index][0] * world.SCALES[index])
    return (seen.box[3] - seen.box[1]) / reach


def colour_error(pixels: np.ndarray, name: str) -> int:
    """How far the median of pixels (N, 3) is from a colour, at most over the channels, of 255."""
    return int(np.abs(np.median(pixels, axis=0) - np.array(world.COLOURS[name])).max())


def related(first: Seen, second: Seen, relation: str) -> bool:
    """Whether the boxes are apart along the relation's axis, in the right order."""
    (t1, l1, b1, r1), (t2, l2, b2, r2) = first.box, second.box
    return {"above": b1 <= t2, "below": t1 >= b2, "left": r1 <= l2, "right": l1 >= r2}[relation]
