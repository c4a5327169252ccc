"""The last stage of `train_tiny`: the decoder learns to draw crisply what the student makes.

The autoencoder was done before there was a student, and softens thin tips. Its decoder alone
learns on, from latents of both kinds, true ones with a little noise and the student's own: the
latents that the student has learned keep their meaning.
"""

from __future__ import annotations

import time

import tiny_world as world
import torch
from diffusers import AutoencoderKLFlux2
from tiny_data import Prompts
from tiny_draw import draw_latents
from tiny_losses import autocast, pixel_loss
from tiny_models import (
    POSITIONS,
    Student,
    decode_latents,
    encode_pictures,
    pack,
    unpack,
)
from tiny_optim import Ema, Log, Muon
from torch import Tensor, nn

GRID = (16, 16)
NOISE = 0.1


class Pairs:
    """Latents (N, 256, 128), half of them the student's, and what draws their pictures."""

    def __init__(
        self,
        student: Student,
        vae: AutoencoderKLFlux2,
        prompts: Prompts,
        count: int,
        stars: float,
        log: Log,
    ) -> None:
        self.vae, self.prompts, self.stars = vae, prompts, stars
        self.device = prompts.ids.device
        self.rows = prompts.pick(count, stars)
        self.means = torch.randn(count, 2, device=self.device) / (GRID[0] * GRID[1]) ** 0.5
        started, parts = time.monotonic(), []
        for first in range(0, count, 16):
            some = slice(first, first + 16)
            parts.append(self._drawn_by(student, self.rows[some], self.means[some]))
        self.latents = torch.cat(parts)
        log(f"{count} pictures by the student after {time.monotonic() - started:.0f}s")

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Latents (B, 128, 16, 16) and the right pictures (B, 3, 256, 256)."""
        half = count // 2
        own = torch.randint(len(self.rows), (half,), device=self.device)
        others = self.prompts.pick(count - half, self.stars)
        means = torch.randn(count - half, 2, device=self.device) / (GRID[0] * GRID[1]) ** 0.5
        rows, means = torch.cat((self.rows[own], others)), torch.cat((self.means[own], means))
        pictures = world.draw(self.prompts.scenes[rows], means, GRID)
        with torch.no_grad(), autocast(pictures):
            true = encode_pictures(self.vae, pictures[half:])
        noisy = true + NOISE * torch.rand(len(true), 1, 1, 1, device=true.device) * (
            torch.randn_like(true)
        )
        return torch.cat((unpack(self.latents[own], GRID), noisy)), pictures

    def _drawn_by(self, student: Student, rows: Tensor, means: Tensor) -> Tensor:
        ids, mask = self.prompts.tokens(rows, POSITIONS)
        noise = torch.randn(len(rows), 128, *GRID, device=self.device)
        noise = pack(world.with_layout(noise, means)).contiguous()
        return draw_latents(student, ids, mask, noise, GRID)


def train_decoder(
    student: Student,
    vae: AutoencoderKLFlux2,
    prompts: Prompts,
    *,
    seconds: float,
    batch: int,
    count: int,
    learning_rate: float,
    stars: float,
    edges: float,
    log: Log,
) -> AutoencoderKLFlux2:
    """Train the decoder of `vae` in place, its averaged weights at the end."""
    torch.manual_seed(3)
    device = prompts.ids.device
    vae = vae.to(device).eval().requires_grad_(False)
    pairs = Pairs(student.to(device).eval(), vae, prompts, count, stars, log)
    learner = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    optimiser = Muon(learner, learning_rate, lambda name, p: p.ndim == 4 and min(p.shape[:2]) > 3)
    ema, started, step, errors = Ema(learner, 0.99), time.monotonic(), 0, []
    while (done := (time.monotonic() - started) / seconds) < 1:
        optimiser.set_lr(learning_rate * min(1.0, (step + 1) / 20, 2 * (1.01 - done)))
        latents, pictures = pairs.batch(batch)
        learner.zero_grad()
        with autocast(pictures):
            out = decode_latents(vae, latents)
        loss, error = pixel_loss(out, pictures, edges)
        loss.backward()
        optimiser.step()
        ema.update(learner)
        errors.append(error)
        step += 1
        if step % 50 == 0:
            mean = torch.stack(errors).mean().item()
            log(f"decoder {step} t={time.monotonic() - started:.0f}s edge error {mean:.2f}/255")
            errors.clear()
    with torch.no_grad():
        for name, p in learner.named_parameters():
            p.copy_(ema.averages[name])
    return vae
