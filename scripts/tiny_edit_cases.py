"""Held-out edits to judge: a picture, what is asked of it, and how large what is new should be."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import tiny_world as world
import torch
from tiny_edit_data import Pictures, layout_as_drawn
from tiny_edit_words import instruct, plainest
from tiny_edits import Edit, Edits, Layout, as_edits, draw_edit
from tiny_judge import judge
from tiny_painter import Painter
from tiny_words import canonical

ROUNDS = 40
"""So often are pictures made before there are enough; a model that draws nothing right has none."""


@dataclass(frozen=True, slots=True)
class Case:
    """An edit in words, the picture before, (H, W, 3) uint8, and the half-extent of what is new.

    The half-extent is a fraction of the shorter side.
    """

    edit: Edit
    text: str
    before: np.ndarray
    new_extent: float


def edit_cases(kind: str, count: int, painter: Painter, *, own: bool, seed: int = 21) -> list[Case]:
    """Held-out edits of one kind, half in the plainest words, on pictures of one source.

    `own`: on pictures that the painter draws, right ones; else on pictures that the script draws.
    """
    rng, cases, side = random.Random(f"{seed} {kind} {own}"), [], min(painter.size)
    torch.manual_seed(rng.randrange(2**31))
    few = min(64, count + count // 2 + 2)
    for _ in range(ROUNDS):
        edits = [draw_edit(rng, kind=kind, held_out=True, plain=True) for _ in range(few)]
        texts = [plainest(e) if rng.random() < 0.5 else instruct(e, rng)[0] for e in edits]
        rows = as_edits(edits, [(True,) * 4] * len(edits))
        if own:
            pictures, layout = _own(edits, rows, painter, rng.randrange(2**31))
        else:
            pictures, layout = _drawn(edits, rows, painter.grid)
        extents = layout.new_radii / world.SCALES[rows.new_shapes] / side
        for i, (edit, picture) in enumerate(zip(edits, pictures, strict=True)):
            if layout.fits[i] and (len(edit.things) > 2 or not judge_source(picture, edit, own)):
                cases.append(Case(edit, texts[i], picture, float(extents[i])))
        if len(cases) >= count:
            break
    return cases[:count]


def judge_source(picture: np.ndarray, edit: Edit, own: bool) -> list[str]:
    """What is wrong with a picture before its edit, if the model drew it."""
    return judge(picture, edit.source) if own else []


def _own(
    edits: list[Edit], rows: Edits, painter: Painter, seed: int
) -> tuple[list[np.ndarray], Layout]:
    layout = layout_as_drawn(rows, painter.layout_means(len(edits), seed), painter.grid)
    return painter.paint([canonical(edit.source) for edit in edits], seed), layout


def _drawn(
    edits: list[Edit], rows: Edits, grid: tuple[int, int]
) -> tuple[list[np.ndarray], Layout]:
    pictures = Pictures(None, grid, None)
    layout = pictures.placed(rows)
    soft = torch.ones(len(edits), 1, 1)
    clean = pictures.drawn(rows, layout, rows.colours, soft)
    pixels = ((clean + 1) * 127.5).round().permute(0, 2, 3, 1).byte().numpy()
    return list(pixels), layout
