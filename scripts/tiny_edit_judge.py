"""Judge an edit of a `tiny` picture by the pixels before and after it."""

from __future__ import annotations

import numpy as np
import tiny_world as world
from tiny_edits import Edit
from tiny_judge import (
    STRAY,
    TOLERANCE,
    Seen,
    colour_error,
    half_extent,
    interior,
    judge_background,
    look,
    nearest_colours,
    related,
    shape_errors,
)

NEAR = 2
"""So many pixels may a side of what is not named move."""
GONE = 0.0005
"""How much of the picture may still be the colour of what was to go."""


def judge_edit(before: np.ndarray, after: np.ndarray, edit: Edit, new_extent: float) -> list[str]:
    """Everything wrong with an edit; empty when it is right.

    Pictures (H, W, 3) uint8, in which all colours differ, before and after. `new_extent`: the
    half-extent that an added thing should have, a fraction of the shorter side.
    """
    if before.shape != after.shape:
        return [f"of size {after.shape} instead of {before.shape}"]
    old, new = nearest_colours(before), nearest_colours(after)
    wrong = judge_background(after, new, edit.background_after)
    if edit.background_after == edit.background:
        wrong += _same_colour(before[_mask(old, edit.background)], after, new, edit.background)
    before_things = [look(_mask(old, thing.colour)) for thing in edit.things]
    after_things = [look(_mask(new, thing.colour)) for thing in edit.things_after]
    gone = edit.kind == "remove"
    places = [i for i in range(len(edit.things)) if not (gone and i == edit.named)]
    for place, (i, found) in enumerate(zip(places, after_things, strict=False)):
        thing, was = edit.things_after[place], before_things[i]
        if was is None or found is None:
            wrong.append(f"no {thing.colour} {thing.shape}")
        elif edit.kind == "turn" and i == edit.named:
            wrong += _turned(before, after, was, found, edit)
        else:
            wrong += _kept(was, found, thing.shape)
            if thing.colour == edit.things[i].colour:
                pixels = before[_mask(old, thing.colour)]
                wrong += _same_colour(pixels, after, new, thing.colour)
            elif (off := colour_error(after[interior(found.mask)], thing.colour)) > TOLERANCE:
                wrong.append(f"{thing.colour} off by {off}")
    if edit.kind == "add":
        wrong += _added(after, after_things[-1], after_things[edit.named], edit, new_extent)
    expected = {edit.background_after, *(thing.colour for thing in edit.things_after)}
    before_it = {thing.colour for thing in edit.things}
    for name in world.COLOURS:
        most = GONE if name in before_it else STRAY
        if name not in expected and interior(_mask(new, name)).mean() > most:
            wrong.append(f"stray {name}")
    return wrong


def _mask(labels: np.ndarray, name: str) -> np.ndarray:
    return labels == list(world.COLOURS).index(name)


def _same_colour(was: np.ndarray, after: np.ndarray, labels: np.ndarray, name: str) -> list[str]:
    now = after[_mask(labels, name)]
    if not len(now) or not len(was):
        return []
    off = int(np.abs(np.median(now, axis=0) - np.median(was, axis=0)).max())
    return [f"{name} changed by {off}"] if off > TOLERANCE else []


def _kept(was: Seen, found: Seen, shape: str) -> list[str]:
    """A thing that must lie where it lay, of the same shape and size."""
    moved = max(abs(a - b) for a, b in zip(was.box, found.box, strict=True))
    wrong = [f"{shape} moved by {moved}"] if moved > NEAR else []
    if found.shape != was.shape or found.whole < 0.98:
        wrong.append(f"{shape} became a {found.shape}")
    return wrong


def _turned(before: np.ndarray, after: np.ndarray, was: Seen, found: Seen, edit: Edit) -> list[str]:
    thing = edit.things_after[edit.named]
    wanted = half_extent(was, edit.things[edit.named].shape) / min(before.shape[:2])
    wrong = shape_errors(after, found, thing, wanted)
    old, new = _centre(was, edit.things[edit.named].shape), _centre(found, thing.shape)
    moved = max(abs(a - b) for a, b in zip(old, new, strict=True))
    return [*wrong, f"{thing.shape} {moved:.1f} off its place"] if moved > NEAR + 1 else wrong


def _added(
    after: np.ndarray, found: Seen | None, anchor: Seen | None, edit: Edit, extent: float
) -> list[str]:
    if found is None or anchor is None:
        return [f"no {edit.new.colour} {edit.new.shape}"]
    wrong = shape_errors(after, found, edit.new, extent)
    if not related(found, anchor, str(edit.beside)):
        wrong.append(f"not {edit.beside}")
    return wrong


def _centre(seen: Seen, shape: str) -> tuple[float, float]:
    """(x, y) of the point that a shape of that kind is drawn around, from its box."""
    _, up, down = world.REACH[world.SHAPES.index(shape)].tolist()
    top, left, bottom, right = seen.box
    return (left + right) / 2, top + (bottom - top) * up / (up + down)
