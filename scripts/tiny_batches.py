"""The batches that `tiny_flow` learns from: which kind is next, and its tensors."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLFlux2
from tiny_data import LatentBuffer, Prompts
from tiny_edit_buffer import EditBuffer
from tiny_edit_data import EditPools, OwnPictures
from tiny_losses import STEPS, Inputs
from tiny_models import POSITIONS, noise_levels, places
from torch import Tensor

SHORT_POSITIONS = 128
DRAW, EDIT = "draw", "edit"
USUAL, LONG, TWO = "16x16", "long", "two"
"""The usual buffers of each task: everyday words, long ones, two references; all of 16 x 16
sixteenths of the side."""
# The other buffers: latent heights and widths, in sixteenths of the picture's.
OTHER_GRIDS = {
    DRAW: (
        *((8, 8), (24, 24), (16, 24), (24, 16)),
        *((12, 12), (20, 20), (9, 16), (16, 9), (12, 20), (20, 12), (8, 24), (24, 8)),
    ),
    EDIT: ((8, 8), (24, 24), (16, 24), (24, 16), (12, 12), (20, 20), (12, 16), (16, 12)),
}
UNROLLED = 4
"""So many of the other sizes are unrolled as well."""
# How often each of the four sigmas is drawn: where the picture lies is decided at the first.
SIGMA_WEIGHTS = (0.35, 0.20, 0.20, 0.25)
OTHER_SIGMAS = 0.15
LOWEST_SIGMA = 0.1
EDIT_BATCH = 0.75
"""The size of a batch of edits, whose sequences are longer, in batches of drawings."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a step learns: a loss ("match", "follow1" to "follow3", "unroll"), over so many text
    positions, on a task's buffer."""

    loss: str
    positions: int
    task: str
    source: str

    @property
    def buffer(self) -> str:
        """The name of the buffer."""
        return f"{self.task} {self.source}"

    def __str__(self) -> str:
        return f"{self.loss} {self.positions} {self.buffer}"


@dataclass(frozen=True, slots=True)
class Mixture:
    """How often what is drawn: `edits` are edits, `other_grids` of other sizes, `long` of long
    words, `stars` hold a star at least. `batch`: drawings in a step of one process; `buffered`:
    pairs of encoded pictures; `renewed`: so many of them at every fourth step."""

    edits: float = 0.62
    other_grids: float = 0.15
    long: float = 0.06
    stars: float = 0.0
    batch: int = 128
    buffered: int = 8000
    renewed: int = 16


class Batches:
    """All buffers of one process."""

    def __init__(
        self,
        vae: AutoencoderKLFlux2,
        prompts: tuple[Prompts, Prompts],
        edits: EditPools,
        own: OwnPictures,
        mixture: Mixture,
    ) -> None:
        self.mixture, self.device = mixture, prompts[0].ids.device
        self._kept: dict[tuple[int, tuple[int, int], int], tuple[Tensor, Tensor]] = {}
        many, few, stars = mixture.buffered, max(4, mixture.buffered // 16), mixture.stars
        self.buffers: dict[str, LatentBuffer | EditBuffer] = {
            f"{DRAW} {USUAL}": LatentBuffer(vae, prompts[0], many, (16, 16), stars),
            f"{DRAW} {LONG}": LatentBuffer(vae, prompts[1], 2 * few, (16, 16), stars),
            f"{EDIT} {USUAL}": EditBuffer(vae, edits.everyday, many, (16, 16), stars, own=own),
            f"{EDIT} {LONG}": EditBuffer(vae, edits.long, 2 * few, (16, 16), stars),
            f"{EDIT} {TWO}": EditBuffer(vae, edits.two, few, (16, 16), stars, second=edits.second),
        }
        for grid in OTHER_GRIDS[DRAW]:
            self.buffers[f"{DRAW} {name(grid)}"] = LatentBuffer(vae, prompts[0], few, grid, stars)
        for grid in OTHER_GRIDS[EDIT]:
            buffer = EditBuffer(vae, edits.everyday, few, grid, stars)
            self.buffers[f"{EDIT} {name(grid)}"] = buffer

    def inputs(self, kind: Kind) -> Inputs:
        """The tensors of one batch."""
        buffer, unroll = self.buffers[kind.buffer], kind.loss == "unroll"
        pairs = self._pairs(kind)
        sample = buffer.sample(pairs)
        ids, mask = buffer.prompts.tokens(sample["rows"], kind.positions)
        levels, where = self._constants(kind.positions, buffer.grid, buffer.references)
        inputs = {"ids": ids, "mask": mask, "levels": levels, "places": where}
        inputs |= {key: sample[key] for key in ("noise", "target", "given") if key in sample}
        if kind.loss == "match":
            inputs["sigma"] = self._sigmas(2 * pairs, levels)
        if unroll:
            inputs["pictures"] = buffer.pictures(sample, max(1, pairs // 2))
        else:
            inputs["offsets"], inputs["there"] = buffer.offsets(sample)
        return inputs

    def _constants(
        self, positions: int, grid: tuple[int, int], references: int
    ) -> tuple[Tensor, Tensor]:
        """Noise levels and position ids, on the device once and for all."""
        key = (positions, grid, references)
        if key not in self._kept:
            levels, where = noise_levels(grid, STEPS), places(positions, grid, references)
            self._kept[key] = levels.to(self.device), where.to(self.device)
        return self._kept[key]

    def _pairs(self, kind: Kind) -> int:
        tokens = self.buffers[kind.buffer].grid[0] * self.buffers[kind.buffer].grid[1]
        pairs = self.mixture.batch * 128 / max(256, tokens)
        pairs *= EDIT_BATCH if kind.task == EDIT else 1
        pairs /= 4 if kind.loss == "unroll" else 1
        pairs /= {LONG: 4, TWO: 2}.get(kind.source, 1)
        return max(2, int(pairs))

    def _sigmas(self, count: int, levels: Tensor) -> Tensor:
        weights = torch.tensor(SIGMA_WEIGHTS, device=self.device)
        own = levels[torch.multinomial(weights, count, replacement=True)]
        other = LOWEST_SIGMA + (1 - LOWEST_SIGMA) * torch.rand(count, device=self.device)
        return torch.where(torch.rand(count, device=self.device) < OTHER_SIGMAS, other, own)

    def renew(self, kind: Kind) -> None:
        """Put some new pictures in the buffer of this kind."""
        self.buffers[kind.buffer].renew(self.mixture.renewed)


def kinds_of(phase: str) -> list[Kind]:
    """Every kind that a phase draws."""
    tasks = (DRAW, EDIT)
    others = {task: [name(grid) for grid in OTHER_GRIDS[task]] for task in tasks}
    short = [
        Kind("match", SHORT_POSITIONS, task, source)
        for task in tasks
        for source in (USUAL, *others[task], *((TWO,) if task == EDIT else ()))
    ]
    if phase == "match":
        return short
    if phase == "follow":
        losses = ("match", "follow1", "follow2", "follow3")
        full = [Kind(loss, POSITIONS, task, USUAL) for loss in losses for task in tasks]
        short = [kind for kind in short if kind.source != USUAL]
        return [*short, *full, *(Kind("match", POSITIONS, task, LONG) for task in tasks)]
    sources = {
        task: (USUAL, LONG, *others[task][:UNROLLED], *((TWO,) if task == EDIT else ()))
        for task in tasks
    }
    return [Kind("unroll", POSITIONS, task, source) for task in tasks for source in sources[task]]


def draw_kinds(phase: str, mixture: Mixture, rng: random.Random, count: int) -> list[Kind]:
    """The kinds of the next step's batches, one a process: one loss, and tasks of their own."""
    luck = rng.random()
    other = luck < mixture.other_grids
    long = not other and phase != "match" and luck < mixture.other_grids + mixture.long
    unroll, loss, positions = phase == "unroll", "match", POSITIONS
    if unroll:
        loss = "unroll"
    elif phase == "match" or other:
        positions = SHORT_POSITIONS
    elif not long and rng.random() < 0.5:
        loss = f"follow{rng.randint(1, 3)}"
    kinds = []
    for _ in range(count):
        task = EDIT if rng.random() < mixture.edits else DRAW
        source = LONG if long else USUAL
        if other:
            grids = OTHER_GRIDS[task][: UNROLLED if unroll else None]
            source = rng.choice([*map(name, grids), *((TWO,) if task == EDIT else ())])
        kinds.append(Kind(loss, positions, task, source))
    return kinds


def name(grid: tuple[int, int]) -> str:
    """What a size is called."""
    return f"{grid[0]}x{grid[1]}"
