"""What `tiny` learns editing from: a pool of instructions, and buffers of pictures of both kinds.

A picture to edit is drawn by the script, somewhere and a little spoiled, or by the student as it
was at the start, which knows where its things lie and draws them a little softer.
"""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tiny_world as world
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2
from tiny_data import PROMPT_TOKENS, Prompts
from tiny_draw import draw_latents
from tiny_edit_words import instruct
from tiny_edits import MOST, Edit, Edits, Layout, as_edits, change, draw_edit, lay_out
from tiny_models import (
    POSITIONS,
    Student,
    decode_latents,
    pack,
    unpack,
)
from tiny_words import canonical
from tokenizers import Tokenizer
from torch import Tensor

from klein_cli.text.tokenizer import render

CANDIDATES = 24
"""So many places are tried for each picture; the first that fits is taken."""
OWN_GRID = (16, 16)
PLACES = ("in the first image", "in image 1", "in the first picture", "in picture 1")
SECOND = ("in the second image", "in image 2", "in the second picture", "in picture 2")


@dataclass
class EditPools:
    """Everyday instructions, long ones, and some that may say which of two pictures they mean.

    `drawn` are the prompts of the everyday pool's pictures before, where words can tell them;
    `second` (N,) bool: the instruction is about the second picture.
    """

    everyday: Prompts
    long: Prompts
    two: Prompts
    second: Tensor
    drawn: Prompts

    def to(self, device: torch.device) -> EditPools:
        """The same pools on another device."""
        return EditPools(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def edit_pools(tokenizer: Path, count: int, long: int) -> EditPools:
    """Made anew, the same each time, by as many processes as there are cores."""
    everyday, drawn, _ = _make(tokenizer, count, PROMPT_TOKENS, 11, "everyday")
    chatty, _, _ = _make(tokenizer, long, POSITIONS, 12, "long")
    two, _, second = _make(tokenizer, long, PROMPT_TOKENS, 13, "two")
    return EditPools(everyday, chatty, two, second, drawn)


def _make(
    tokenizer: Path, count: int, tokens: int, seed: int, style: str
) -> tuple[Prompts, Prompts, Tensor]:
    share = min(count, 4000)
    work = [(tokenizer, share, tokens, 1000 * seed + i, style) for i in range(-(-count // share))]
    with ProcessPoolExecutor() as pool:
        rows = [row for part in pool.map(_share, work) for row in part]
    pad = Tokenizer.from_file(str(tokenizer)).token_to_id("<|endoftext|>")
    asked, drawn, edits, said, second = zip(*rows, strict=True)
    scenes = as_edits(list(edits), list(said))
    return (
        _prompts(asked, scenes, tokens, pad),
        _prompts(drawn, scenes, PROMPT_TOKENS, pad),
        torch.tensor(second),
    )


def _prompts(rows: tuple[list[int], ...], scenes: Edits, tokens: int, pad: int) -> Prompts:
    padded = torch.tensor([row + [pad] * (tokens - len(row)) for row in rows], dtype=torch.int16)
    return Prompts(padded, torch.tensor([len(row) for row in rows]), scenes, pad)


def _share(
    work: tuple[Path, int, int, int, str],
) -> list[tuple[list[int], list[int], Edit, tuple[bool, ...], bool]]:
    path, count, tokens, seed, style = work
    tokenizer, rng = Tokenizer.from_file(str(path)), random.Random(seed)
    rows: list[tuple[list[int], list[int], Edit, tuple[bool, ...], bool]] = []
    while len(rows) < count:
        edit = draw_edit(rng)
        text, said = instruct(edit, rng, chatter=rng.randint(4, 30) if style == "long" else None)
        second = False
        if style == "two":
            text, second = _which(text, rng)
        ids = tokenizer.encode(render(text)).ids
        drawn = tokenizer.encode(render(canonical(edit.source))).ids if len(edit.things) < 3 else []
        if len(ids) <= tokens and len(drawn) <= PROMPT_TOKENS:
            rows.append((ids, drawn, edit, said, second))
    return rows


def _which(text: str, rng: random.Random) -> tuple[str, bool]:
    """The instruction, saying which picture it means or leaving it at the first one."""
    if rng.random() < 0.3:
        return text, False
    second = rng.random() < 0.5
    place = rng.choice(SECOND if second else PLACES)
    text = text.rstrip(".!?")
    return (f"{place}, {text}" if rng.random() < 0.5 else f"{text} {place}"), second


@dataclass
class OwnPictures:
    """Latents (N, 256, 128) bfloat16 that a student drew, of which edits, and its noise's means."""

    rows: Tensor
    means: Tensor
    latents: Tensor


@torch.no_grad()
def draw_own(student: Student, pools: EditPools, count: int, batch: int = 256) -> OwnPictures:
    """Let the student draw pictures before edits that fit where they lie."""
    device, parts = pools.everyday.ids.device, []
    for _ in range(-(-count // batch)):
        rows = pools.everyday.pick(3 * batch, 0.4)
        rows = rows[(pools.drawn.lengths[rows] > 0).float().argsort(descending=True)[: 2 * batch]]
        edits = pools.everyday.scenes[rows]
        means, layout = _as_drawn(edits, OWN_GRID)
        best = (layout.fits & (pools.drawn.lengths[rows] > 0)).float().argsort(descending=True)
        rows, means = rows[best[:batch]], means[best[:batch]]
        ids, mask = pools.drawn.tokens(rows, POSITIONS)
        noise = torch.randn(len(rows), 128, *OWN_GRID, device=device)
        noise = pack(world.with_layout(noise, means)).contiguous()
        parts.append((rows, means, draw_latents(student, ids, mask, noise, OWN_GRID).bfloat16()))
    return OwnPictures(*(torch.cat(part)[:count] for part in zip(*parts, strict=True)))


def _as_drawn(edits: Edits, grid: tuple[int, int]) -> tuple[Tensor, Layout]:
    """Means (B, 2) of noise that fits the edits, and where it puts things."""
    many = _repeated(edits)
    device = edits.kinds.device
    means = torch.randn(len(many.kinds), 2, device=device) / (grid[0] * grid[1]) ** 0.5
    layout = layout_as_drawn(many, means, grid)
    chosen = _first(layout.fits)
    return means[chosen], layout[chosen]


def layout_as_drawn(edits: Edits, means: Tensor, grid: tuple[int, int]) -> Layout:
    """The layout of pictures of up to two things that are drawn from noise of such means."""
    height, width = 16 * grid[0], 16 * grid[1]
    scenes = world.Scenes(
        edits.shapes[:, :2], edits.sizes[:, :2], edits.colours[:, [0, 1, 3]], edits.relations
    )
    u = world.layout_uniforms(means, grid[0] * grid[1])
    centres, _ = world.lay_out(scenes, u, height, width)
    centres = torch.cat((centres, centres[:, 1:]), 1)
    extents = world.fit_extent(edits.sizes, height, width) * min(height, width)
    return lay_out(edits, centres, extents, height, width)


def _anywhere(edits: Edits, grid: tuple[int, int]) -> Layout:
    """Things anywhere, of about their sizes or any, all apart."""
    height, width = 16 * grid[0], 16 * grid[1]
    side, count, device = min(height, width), len(edits.kinds), edits.kinds.device
    own = world.fit_extent(edits.sizes, height, width)
    own = own * (0.9 + 0.2 * torch.rand(count, MOST, device=device))
    anything = world.fit_extent(0.08 + 0.11 * torch.rand(count, MOST, device=device), height, width)
    extents = side * torch.where(torch.rand(count, 1, device=device) < 0.6, own, anything)
    many, some = _repeated(edits), extents.repeat_interleave(CANDIDATES, 0)
    room = torch.tensor([width, height], device=device) - 2 * some[..., None] * world.SCALES.max()
    corner = (some * world.SCALES.max())[..., None]
    centres = corner + room.clamp(min=0) * torch.rand(*some.shape, 2, device=device)
    layout = lay_out(many, centres, some, height, width)
    return layout[_first(layout.fits)]


def _repeated(edits: Edits) -> Edits:
    rows = torch.arange(len(edits.kinds), device=edits.kinds.device)
    return edits[rows.repeat_interleave(CANDIDATES)]


def _first(fits: Tensor) -> Tensor:
    """(B,): the row of the first candidate that fits, or of the first of all."""
    place = fits.view(-1, CANDIDATES).int().argmax(1)
    return place + CANDIDATES * torch.arange(len(place), device=fits.device)


@dataclass
class Pair:
    """Pictures before and after, (B, 3, H, W) in [-1, 1], and where the named things lie."""

    before: Tensor
    after: Tensor
    layout: Layout


class Pictures:
    """Makes pictures of edits, before and after, of one grid; the student's need its VAE."""

    def __init__(
        self, vae: AutoencoderKLFlux2 | None, grid: tuple[int, int], own: OwnPictures | None
    ) -> None:
        self.vae, self.grid, self.own = vae, grid, own

    def placed(self, edits: Edits) -> Layout:
        """Somewhere for all things to lie."""
        return _anywhere(edits, self.grid)

    def by_script(self, edits: Edits, layout: Layout | None = None) -> Pair:
        """Pictures drawn by the script, spoiled a little before the edit and clean after it."""
        layout = layout or self.placed(edits)
        height, width = 16 * self.grid[0], 16 * self.grid[1]
        colours = _jittered(edits)
        soft = _one_of(len(edits.kinds), (0.01, 1.0, 1.0, 2.0), colours.device)[:, None, None]
        clean = self.drawn(edits, layout, colours, torch.ones_like(soft))
        after = change(edits, layout, colours, clean)
        before = self.drawn(edits, layout, colours, soft)
        before = _spoiled(before.view(len(before), 3, height, width))
        return Pair(before, after, layout)

    def by_student(self, edits: Edits, place: Tensor) -> Pair:
        """The student's own pictures of such places in its pool, which are of these edits."""
        assert self.own is not None
        assert self.vae is not None
        layout = layout_as_drawn(edits, self.own.means[place], self.grid)
        latents = unpack(self.own.latents[place].float(), self.grid)
        before = _in_levels(decode_latents(self.vae, latents))
        return Pair(before, change(edits, layout, edits.colours, before), layout)

    def drawn(self, edits: Edits, layout: Layout, colours: Tensor, soft: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) before the edits, their edges over `soft` (B, 1, 1) pixels."""
        height, width = 16 * self.grid[0], 16 * self.grid[1]
        picture = colours[:, 3, :, None, None].expand(-1, -1, height, width)
        for i in range(MOST):
            covered = world.cover(
                edits.shapes[:, i], layout.centres[:, i], layout.radii[:, i], height, width, soft
            )
            picture = world.paint(picture, covered, colours[:, i])
        return picture


def _one_of(count: int, values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[torch.randint(len(values), (count,), device=device)]


def _jittered(edits: Edits) -> Tensor:
    """Colours (B, 4, 3) a little off their names' in every second picture; some not named: any."""
    colours, device = edits.colours, edits.colours.device
    some = torch.rand(len(colours), 1, 1, device=device) < 0.5
    moved = colours + some * 0.05 * (2 * torch.rand_like(colours) - 1)
    wild = (torch.rand(colours.shape[:2], device=device) < 0.04) & ~edits.said
    random_colours = 2 * torch.rand_like(colours) - 1
    every = torch.cat((colours, edits.new_colours[:, None]), 1)
    distance = (random_colours[:, :, None] - every[:, None]).abs().amax(-1).amin(-1)
    wild = wild & (distance > 0.4)
    # One at most, so that no two random colours meet.
    wild = wild & (wild.int().cumsum(1) == 1)
    return torch.where(wild[..., None], random_colours, moved).clamp(-1, 1)


def _spoiled(pictures: Tensor) -> Tensor:
    """Some with the noise and the blocks of a JPEG file or a slight blur; all in 8-bit levels."""
    count, device = len(pictures), pictures.device
    blurred = F.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    share = _one_of(count, (0.0, 0.0, 0.0, 0.5), device)[:, None, None, None]
    pictures = pictures.lerp(blurred, share)
    coarse = F.interpolate(
        torch.randn(
            count, 3, -(-pictures.shape[2] // 8), -(-pictures.shape[3] // 8), device=device
        ),
        size=pictures.shape[2:],
    )
    amount = _one_of(count, (0.0, 0.0, 0.012, 0.025), device)[:, None, None, None]
    edges = (pictures - blurred).abs().amax(1, keepdim=True)
    ringing = F.avg_pool2d(edges, 9, 1, 4).clamp(max=0.5) * torch.randn_like(pictures)
    return _in_levels(
        pictures + amount * (coarse + torch.randn_like(pictures)) + 3 * amount * ringing
    )


def _in_levels(pictures: Tensor) -> Tensor:
    return (pictures.float().clamp(-1, 1) * 127.5).round() / 127.5
