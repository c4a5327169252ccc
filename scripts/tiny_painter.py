"""A written `tiny` model at work in the terms of its training: words and pictures to pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tiny_data import Prompts
from tiny_draw import draw_latents
from tiny_models import (
    POSITIONS,
    Student,
    decode_latents,
    encode_pictures,
    load_vae,
    pack,
    unpack,
)
from tokenizers import Tokenizer
from torch import Tensor

from klein_cli.text.tokenizer import render


class Painter:
    """Draws and edits many pictures at once, in bfloat16 on a GPU and float32 elsewhere."""

    def __init__(self, root: Path, device: torch.device) -> None:
        self.device = device
        student = Student()
        student.load_snapshot(root)
        self.student, self.vae = student.to(device).eval(), load_vae(root).to(device).eval()
        self.tokenizer = Tokenizer.from_file(str(root / "tokenizer" / "tokenizer.json"))
        self.pad = self.tokenizer.token_to_id("<|endoftext|>")

    def draw(self, texts: list[str], noise: Tensor) -> list[np.ndarray]:
        """(H, W, 3) uint8 pictures of prompts, from noise (B, 128, h, w)."""
        grid = (noise.shape[2], noise.shape[3])
        ids, mask = self._tokens(texts)
        noise = pack(noise.to(self.device)).contiguous()
        return self._decoded(draw_latents(self.student, ids, mask, noise, grid), grid)

    def edit(
        self, texts: list[str], pictures: list[np.ndarray], batch: int, seed: int = 0
    ) -> list[np.ndarray]:
        """The pictures (H, W, 3) uint8, all of one size, after what the texts ask."""
        grid = (pictures[0].shape[0] // 16, pictures[0].shape[1] // 16)
        generator, made = torch.Generator().manual_seed(seed), []
        for first in range(0, len(texts), batch):
            some = slice(first, first + batch)
            ids, mask = self._tokens(texts[some])
            given = self._encoded(pictures[some])
            noise = torch.randn(given.shape, generator=generator).to(self.device)
            made += self._decoded(draw_latents(self.student, ids, mask, noise, grid, given), grid)
        return made

    def _tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        rows = [self.tokenizer.encode(render(text)).ids[:POSITIONS] for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        ids = torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows])
        every = torch.arange(len(rows), device=self.device)
        prompts = Prompts(ids.to(self.device), lengths.to(self.device), None, self.pad)
        return prompts.tokens(every, POSITIONS)

    @torch.no_grad()
    def _encoded(self, pictures: list[np.ndarray]) -> Tensor:
        pixels = torch.from_numpy(np.stack(pictures)).to(self.device)
        return pack(encode_pictures(self.vae, pixels.permute(0, 3, 1, 2) / 127.5 - 1))

    @torch.no_grad()
    def _decoded(self, latents: Tensor, grid: tuple[int, int]) -> list[np.ndarray]:
        pixels = (decode_latents(self.vae, unpack(latents, grid)).clamp(-1, 1) + 1) * 127.5
        return list(pixels.round().permute(0, 2, 3, 1).byte().cpu().numpy())
