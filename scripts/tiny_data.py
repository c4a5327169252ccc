"""What the `tiny` model learns from: pools of prompts, and buffers of encoded pictures."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tiny_world as world
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2
from tiny_edits import Edits
from tiny_models import POSITIONS, VOCABULARY, encode_pictures, pack
from tiny_words import describe
from tokenizers import Tokenizer
from torch import Tensor

from klein_cli.bench.random_files import write_tokenizer
from klein_cli.text.tokenizer import render

PROMPT_TOKENS = 96
OFFSET_TOKENS = 4
PAIRS = 0.62
"""The share of prompts with two things."""


@dataclass
class Prompts:
    """A pool of prompts: ids (N, K) int16, lengths (N,) and the scenes or edits they describe."""

    ids: Tensor
    lengths: Tensor
    scenes: world.Scenes | Edits
    pad: int
    starry: Tensor | None = None

    def to(self, device: torch.device) -> Prompts:
        """The same pool on another device."""
        return Prompts(
            self.ids.to(device), self.lengths.to(device), self.scenes.to(device), self.pad
        )

    def tokens(self, rows: Tensor, positions: int) -> tuple[Tensor, Tensor]:
        """ids (B, positions) int64 and mask (B, 1, positions, K) bool of some prompts."""
        ids = F.pad(self.ids[rows].long(), (0, positions - self.ids.shape[1]), value=self.pad)
        keys = torch.arange(self.ids.shape[1], device=ids.device)
        causal = keys[None] <= torch.arange(positions, device=ids.device)[:, None]
        mask = causal[None] & (keys < self.lengths[rows][:, None])[:, None]
        return ids, mask[:, None]

    def pick(self, count: int, stars: float = 0.0) -> Tensor:
        """Random rows (count,), of which the share `stars`, or more by chance, hold a star.

        A star's tips are what the model draws worst.
        """
        rows = torch.randint(len(self.ids), (count,), device=self.ids.device)
        if not stars:
            return rows
        if self.starry is None:  # once, since it waits for the device
            self.starry = self.scenes.stars.nonzero()[:, 0]
        star = self.starry
        some = star[torch.randint(len(star), (count,), device=star.device)]
        return torch.where(torch.rand(count, device=star.device) < stars, some, rows)


def prompt_pools(
    work: Path, everyday: int, long: int, tokenizer: Path | None
) -> tuple[Prompts, Prompts]:
    """(everyday prompts, long prompts); made once and kept in WORK.

    The tokenizer is the given folder's, or trained on prompts of the world.
    """
    kept = work / "prompts.pt"
    if not kept.exists():
        folder = work / "tokenizer"
        if tokenizer is None:
            write_tokenizer(folder, _corpus(), VOCABULARY)
        else:
            shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
        path = folder / "tokenizer.json"
        pools = [
            _make_prompts(path, everyday, PROMPT_TOKENS, 1, talk=False),
            _make_prompts(path, long, POSITIONS, 2, talk=True),
        ]
        torch.save(pools, kept)
    pools = torch.load(kept, weights_only=False)
    return pools[0], pools[1]


def _corpus() -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(30_000):
        yield describe(world.draw_composition(rng, pairs=PAIRS), rng)


def _make_prompts(tokenizer: Path, count: int, tokens: int, seed: int, talk: bool) -> Prompts:
    share = min(count, 4000)
    work = [(tokenizer, share, tokens, 1000 * seed + i, talk) for i in range(-(-count // share))]
    with ProcessPoolExecutor() as pool:
        parts = list(pool.map(_share_of_prompts, work))
    pad = Tokenizer.from_file(str(tokenizer)).token_to_id("<|endoftext|>")
    ids, compositions = zip(*(row for part in parts for row in part), strict=True)
    padded = torch.tensor([row + [pad] * (tokens - len(row)) for row in ids], dtype=torch.int16)
    lengths = torch.tensor([len(row) for row in ids])
    return Prompts(padded, lengths, world.as_scenes(list(compositions)), pad)


def _share_of_prompts(
    work: tuple[Path, int, int, int, bool],
) -> list[tuple[list[int], world.Composition]]:
    path, count, tokens, seed, talk = work
    tokenizer, rng = Tokenizer.from_file(str(path)), random.Random(seed)
    rows: list[tuple[list[int], world.Composition]] = []
    while len(rows) < count:
        one = world.draw_composition(rng, pairs=PAIRS)
        text = describe(one, rng, chatter=rng.randint(4, 36) if talk else None)
        ids = tokenizer.encode(render(text)).ids
        if len(ids) <= tokens:
            rows.append((ids, one))
    return rows


class LatentBuffer:
    """Encoded pictures of one size, each prompt drawn twice, renewed a few at a time.

    Encoding costs more than a training step has to spare. A picture depends on its noise through
    the layout's means alone: with these kept, fresh noise goes with old latents.
    """

    def __init__(
        self,
        vae: AutoencoderKLFlux2,
        prompts: Prompts,
        pairs: int,
        grid: tuple[int, int],
        stars: float,
    ) -> None:
        self.vae, self.prompts, self.grid, self.stars = vae, prompts, grid, stars
        device, tokens = prompts.ids.device, grid[0] * grid[1]
        self.rows = prompts.pick(pairs, stars)
        self.means = torch.empty(pairs, 2, 2, device=device)
        self.latents = torch.empty(pairs, 2, tokens, 128, device=device, dtype=torch.bfloat16)
        self.oldest = 0
        share = min(pairs, 64)
        for _ in range(-(-pairs // share)):
            self.renew(share)

    @torch.no_grad()
    def renew(self, pairs: int) -> None:
        """Replace the oldest pictures by new ones of new prompts."""
        place = torch.arange(self.oldest, self.oldest + pairs, device=self.rows.device)
        place = place % len(self.rows)
        self.oldest = (self.oldest + pairs) % len(self.rows)
        self.rows[place] = self.prompts.pick(pairs, self.stars)
        tokens = self.grid[0] * self.grid[1]
        means = torch.randn(2 * pairs, 2, device=place.device) / tokens**0.5
        pictures = world.draw(self._scenes(self.rows[place]), means, self.grid)
        self.means[place] = means.unflatten(0, (pairs, 2))
        latents = pack(encode_pictures(self.vae, pictures)).to(self.latents.dtype)
        self.latents[place] = latents.unflatten(0, (pairs, 2))

    references = 0

    def sample(self, pairs: int) -> dict[str, Tensor]:
        """A batch of 2 P pictures, two of each prompt.

        rows (P,), noise and target (2 P, h * w, 128) float32, and the noise's means (2 P, 2).
        """
        place = torch.randint(len(self.rows), (pairs,), device=self.rows.device)
        means = self.means[place].flatten(0, 1)
        noise = torch.randn(2 * pairs, 128, *self.grid, device=place.device)
        noise = pack(world.with_layout(noise, means)).contiguous()
        target = self.latents[place].flatten(0, 1).float()
        return {"rows": self.rows[place], "noise": noise, "target": target, "means": means}

    def pictures(self, sample: dict[str, Tensor], pairs: int) -> Tensor:
        """The pictures (2 P, 3, H, W) that the first pairs' latents encode."""
        scenes = self._scenes(sample["rows"][:pairs])
        return world.draw(scenes, sample["means"][: 2 * pairs], self.grid)

    def offsets(self, sample: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """How far each thing's centre lies from each token, and which things are there.

        `token_offsets` of the first thing and of the second; (2 P, 4) of ones and zeros.
        """
        scenes, (height, width) = self._scenes(sample["rows"]), self.grid
        u = world.layout_uniforms(sample["means"], height * width)
        centres, _ = world.lay_out(scenes, u, 16 * height, 16 * width)
        there = (scenes.shapes >= 0).float().repeat_interleave(2, 1)
        return token_offsets(centres, self.grid), there

    def _scenes(self, rows: Tensor) -> world.Scenes:
        return self.prompts.scenes[rows.repeat_interleave(2)]


def token_offsets(centres: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h * w, 4): how far two centres (B, 2, 2), in pixels, lie from each token.

    In units of OFFSET_TOKENS and no farther than 1.5 of them.
    """
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = (torch.stack((x, y), -1).flatten(0, 1) + 0.5).to(centres.device)
    offsets = (centres[:, None] / 16 - places[None, :, None]) / OFFSET_TOKENS
    return offsets.clamp(-1.5, 1.5).flatten(2)
