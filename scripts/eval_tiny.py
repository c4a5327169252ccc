"""Judge pictures of the `tiny` model by their pixels alone.

    python scripts/eval_tiny.py                      # held-out prompts, one and two objects
    python scripts/eval_tiny.py --model FOLDER --seeds 4 --pairs 200 --save pictures/

Prompts come from compositions that training never saw, in plain and chatty wordings, rendered
through the product's own pipeline at 256x256 in 4 steps, in batches of differing lengths. A picture
passes when its background, and every object's colour, shape, size and place are right, and nothing
else is in it. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent))
import tiny_world as world
from tiny_words import canonical, describe

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
    wrong = _judge_background(picture, labels, composition.background)
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
    if len(seen) == 2 and composition.relation and not _related(*seen, composition.relation):
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


def _judge_background(picture: np.ndarray, labels: np.ndarray, name: str) -> list[str]:
    mask = labels == list(world.COLOURS).index(name)
    border = np.concatenate(
        [mask[:3].ravel(), mask[-3:].ravel(), mask[:, :3].ravel(), mask[:, -3:].ravel()]
    )
    if border.mean() < 0.98:
        return [f"background not {name}"]
    off = _colour_error(picture[mask], name)
    return [f"background {name} off by {off}"] if off > TOLERANCE else []


def _judge_thing(picture: np.ndarray, seen: Seen, thing: world.Thing) -> list[str]:
    wrong = []
    core = interior(seen.mask)
    off = _colour_error(picture[core if core.any() else seen.mask], thing.colour)
    if off > TOLERANCE:
        wrong.append(f"{thing.colour} off by {off}")
    if seen.area < MIN_AREA:
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
    extent = _half_extent(seen, thing.shape) / min(picture.shape[:2])
    wanted = float(world.fit_extent(torch.tensor(world.SIZES[thing.size]), *picture.shape[:2]))
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


def _half_extent(seen: Seen, shape: str) -> float:
    """The object's half-extent in the world's measure, in pixels, from its box's width."""
    index = world.SHAPES.index(shape)
    reach = 2 * float(world.REACH[index][0] * world.SCALES[index])
    return (seen.box[3] - seen.box[1]) / reach


def _colour_error(pixels: np.ndarray, name: str) -> int:
    return int(np.abs(np.median(pixels, axis=0) - np.array(world.COLOURS[name])).max())


def _related(first: Seen, second: Seen, relation: str) -> bool:
    """Whether the boxes are apart along the relation's axis, in the right order."""
    (t1, l1, b1, r1), (t2, l2, b2, r2) = first.box, second.box
    return {"above": b1 <= t2, "below": t1 >= b2, "left": r1 <= l2, "right": l1 >= r2}[relation]


def held_out_prompts(pairs: int, seed: int) -> list[tuple[str, world.Composition]]:
    """Every held-out composition of one object, then `pairs` of two, each with a wording."""
    rng = random.Random(seed)
    ones = world.singles(held_out=True)
    twos = [world.draw_composition(rng, pairs=1.0, held_out=True) for _ in range(pairs)]
    return [
        (canonical(one) if rng.random() < 0.5 else describe(one, rng), one)
        for one in (*ones, *twos)
    ]


def main() -> None:
    """Render, judge and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="a name or folder, as for klein generate")
    parser.add_argument("--seeds", type=int, default=4, help="pictures per prompt")
    parser.add_argument("--pairs", type=int, default=100, help="how many two-object prompts")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--save", type=Path, help="keep the pictures that fail in this folder")
    args = parser.parse_args()
    prompts = [pair for pair in held_out_prompts(args.pairs, seed=11) for _ in range(args.seeds)]
    random.Random(5).shuffle(prompts)
    pictures = _render([text for text, _ in prompts], args)
    report(prompts, pictures, args)


def _render(texts: list[str], args: argparse.Namespace) -> list[np.ndarray]:
    from klein_cli.checkpoints.resolve import resolve
    from klein_cli.pipeline import Pipeline, choose
    from klein_cli.recipe import Recipe
    from klein_cli.settings import Settings

    snapshot = resolve(args.model)
    settings = choose(Settings(device=args.device, dtype=args.dtype), snapshot.preset)
    pipeline = Pipeline.load(snapshot, settings)
    width, height = (int(n) for n in args.size.split("x"))
    pictures: list[np.ndarray] = []
    for start in range(0, len(texts), args.batch):
        recipes = [
            Recipe(
                prompt=text, seed=1000 + start + i, width=width, height=height, steps=args.steps,
                guidance=1.0, model=args.model,
            )
            for i, text in enumerate(texts[start : start + args.batch])
        ]  # fmt: skip
        pictures += pipeline.render(recipes)
    return pictures


def report(
    prompts: list[tuple[str, world.Composition]],
    pictures: list[np.ndarray],
    args: argparse.Namespace,
) -> None:
    """Print what failed, the table, and the JSON line."""
    counts: dict[int, list[int]] = {1: [0, 0], 2: [0, 0]}
    for number, ((text, composition), picture) in enumerate(zip(prompts, pictures, strict=True)):
        wrong = judge(picture, composition)
        tally = counts[len(composition.things)]
        tally[0] += not wrong
        tally[1] += 1
        if wrong:
            print(f"{number:04d} {text!r}: {'; '.join(wrong)}")
            if args.save:
                args.save.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(args.save / f"{number:04d}.png")
    result = {"size": args.size, "steps": args.steps, "seeds": args.seeds}
    for count, (right, total) in counts.items():
        result[f"{count}_object"] = round(right / max(1, total), 4)
        share = right / max(1, total)
        print(f"{count} object{'s' if count > 1 else ' '}: {right} of {total} right, {share:.1%}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
