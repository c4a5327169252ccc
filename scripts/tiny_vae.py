"""The first stage of `train_tiny`: the autoencoder."""

from __future__ import annotations

import random
import time
from functools import partial

import tiny_world as world
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2
from tiny_data import Prompts
from tiny_models import VAE, bn_moments, patchify, unpatchify
from tiny_optim import Log, Muon
from torch import Tensor, nn

GRIDS = ((16, 16), (8, 8), (24, 24), (8, 24))
LEARNING_RATE = 2e-3
LATENT_NOISE = 0.2
"""At most so much noise is added to the unit-variance latents that the decoder learns from."""


def train_vae(
    prompts: Prompts, seconds: float, batch: int, device: torch.device, log: Log
) -> AutoencoderKLFlux2:
    """Learn to reconstruct pictures from noisy, batch-normalised latents; fix the statistics."""
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(**VAE).to(device).train()
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = partial(_group_norm, module)
    optimiser = Muon(vae, LEARNING_RATE, lambda name, p: p.ndim == 4 and min(p.shape[:2]) > 3)
    steps = {grid: VaeStep(vae, prompts, batch, grid) for grid in GRIDS}
    rng = random.Random(0)
    started, step = time.monotonic(), 0
    while (done := (time.monotonic() - started) / seconds) < 1:
        optimiser.set_lr(LEARNING_RATE * min(1.0, (step + 1) / 100, 2 * (1.01 - done)))
        error = steps[GRIDS[0] if rng.random() < 0.8 else rng.choice(GRIDS)]()
        optimiser.step()
        step += 1
        if step % 500 == 0:
            spent = time.monotonic() - started
            log(f"vae {step} t={spent:.0f}s mean error {error.item() * 127.5:.3f}/255")
    _fix_statistics(vae, prompts, batch)
    mean, std = bn_moments(vae)
    log(f"latent std from {std.min():.3f} to {std.max():.3f}, |mean| to {mean.abs().max():.3f}")
    return vae


class VaeStep:
    """Loss and gradients on fresh pictures of one size; on a GPU, replayed as a CUDA graph.

    The model is so small that launching its kernels takes longer than running them.
    """

    def __init__(
        self, vae: AutoencoderKLFlux2, prompts: Prompts, batch: int, grid: tuple[int, int]
    ) -> None:
        self.vae, self.prompts, self.grid = vae, prompts, grid
        self.count = max(2, batch * 256 // (grid[0] * grid[1]))
        self.graph: torch.cuda.CUDAGraph | None = None
        if prompts.ids.is_cuda:
            self._capture()

    def __call__(self) -> Tensor:
        """Leave the gradients in the parameters; the mean absolute error comes back."""
        pictures = _pictures(self.prompts, self.count, self.grid)
        if self.graph is None:
            self.vae.zero_grad()
            loss, error = _loss(self.vae, pictures)
            loss.backward()
            return error
        self.pictures.copy_(pictures)
        self.graph.replay()
        for p, grad in zip(self.vae.parameters(), self.grads, strict=True):
            p.grad = grad
        return self.error

    def _capture(self) -> None:
        self.pictures = _pictures(self.prompts, self.count, self.grid)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.vae.zero_grad()
                _loss(self.vae, self.pictures)[0].backward()
        torch.cuda.current_stream().wait_stream(side)
        self.vae.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            loss, self.error = _loss(self.vae, self.pictures)
            loss.backward()
        self.grads = [p.grad for p in self.vae.parameters()]


def _pictures(prompts: Prompts, count: int, grid: tuple[int, int]) -> Tensor:
    """Pictures of the world; in every fourth, random colours, so that the latents are smooth."""
    scenes = prompts.scenes[prompts.pick(count)]
    wild = torch.rand(count, 1, 1, device=scenes.colours.device) < 0.25
    scenes.colours = torch.where(wild, torch.rand_like(scenes.colours) * 2 - 1, scenes.colours)
    means = torch.randn(count, 2, device=scenes.colours.device) / (grid[0] * grid[1]) ** 0.5
    return world.draw(scenes, means, grid)


def _group_norm(module: nn.GroupNorm, x: Tensor) -> Tensor:
    """Group norm in the input's own type: under autocast it would be float32, for no gain."""
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = module.weight.to(x.dtype), module.bias.to(x.dtype)
        return F.group_norm(x, module.num_groups, weight, bias, module.eps)


def _loss(vae: AutoencoderKLFlux2, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, mean absolute error in units of [-1, 1])."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        moments = vae.quant_conv(vae.encoder(pictures))
    mean, logvar = moments.float().chunk(2, 1)
    z = patchify(mean)
    normal = vae.bn(z)
    level = LATENT_NOISE * torch.rand(len(z), 1, 1, 1, device=z.device)
    noisy = normal + level * torch.randn_like(normal)
    variance, centre = torch.var_mean(z, (0, 2, 3))
    std = (variance + vae.config.batch_norm_eps).sqrt()
    noisy = noisy * std.view(1, -1, 1, 1) + centre.view(1, -1, 1, 1)
    with torch.autocast(pictures.device.type, torch.bfloat16):
        out = vae.decoder(vae.post_quant_conv(unpatchify(noisy)))
    difference = out.float() - pictures
    edges = sum(difference.diff(dim=d).abs().mean() for d in (2, 3))
    # Keeps every channel at unit scale (none collapses), and gives the unused variances a value.
    scale = variance.clamp(min=1e-6).log().square().mean() + centre.square().mean()
    loss = difference.abs().mean() + difference.square().mean() + 0.5 * edges
    loss = loss + 1e-3 * scale + 1e-4 * (logvar + 4).square().mean()
    return loss, difference.detach().abs().mean()


@torch.no_grad()
def _fix_statistics(vae: AutoencoderKLFlux2, prompts: Prompts, batch: int) -> None:
    """Replace the moving batch-norm statistics by those of many fresh pictures."""
    vae.eval()
    total = square = count = 0
    for _ in range(80):
        moments = vae.quant_conv(vae.encoder(_pictures(prompts, batch, (16, 16))))
        z = patchify(moments[:, : VAE["latent_channels"]]).double()
        total, square = total + z.sum((0, 2, 3)), square + z.square().sum((0, 2, 3))
        count += z.numel() // z.shape[1]
    mean = total / count
    vae.bn.running_mean.copy_(mean)
    vae.bn.running_var.copy_(square / count - mean.square())
