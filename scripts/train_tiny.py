"""Train the embedded `tiny` model and write it in the diffusers layout.

    python scripts/train_tiny.py vae  --work WORK --seconds 120
    python scripts/train_tiny.py flow --work WORK --seconds 720
    python scripts/train_tiny.py write --work WORK --to klein_cli/tiny

One GPU; minutes. `vae` learns the autoencoder, then fixes its batch-norm statistics. `flow` learns
the Qwen3 encoder and the DiT together, in three phases that share one learning-rate schedule:

  match    flow matching with few text positions, which is twice as fast;
  follow   the full 512 positions, half of the steps from the student's own trajectory;
  unroll   all four steps end to end, with a pixel loss through the frozen decoder.

Position and size are a function of the noise (see `tiny_world`), so that every (prompt, noise) pair
has one right picture and four steps can be sharp. Both stages resume from WORK when run again.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.fx.experimental._config
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import (
    Flux2SingleTransformerBlock,
    Flux2TransformerBlock,
)
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import tiny_world as world
from snapshot_files import write_json, write_model_index, write_scheduler_config, write_tokenizer
from tiny_optim import Ema, Muon
from tokenizers import Tokenizer

from klein_cli.models.qwen3 import Qwen3Config, Qwen3DecoderLayer, Qwen3Model

POSITIONS = 512
SHORT_POSITIONS = 128
PROMPT_TOKENS = 96
VOCABULARY = 1024
TAPS = (9, 18, 27)
RENDER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 28,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
}
ROPE_THETA = 1e6
TRANSFORMER = {
    "patch_size": 1,
    "in_channels": 128,
    "out_channels": None,
    "num_layers": 2,
    "num_single_layers": 6,
    "attention_head_dim": 32,
    "num_attention_heads": 6,
    "joint_attention_dim": 192,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": [8, 8, 8, 8],
    "rope_theta": 2000,
    "eps": 1e-6,
    "guidance_embeds": False,
}
VAE = {
    "block_out_channels": [16, 32, 64, 64],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 32,
    "sample_size": 256,
    "batch_norm_eps": 1e-4,
    "patch_size": [2, 2],
}
# Latent heights and widths (sixteenths of the picture's) that training sees besides 16 x 16. Few
# different token counts: every new one costs a plan.
OTHER_GRIDS = (
    *((8, 8), (8, 8), (24, 24), (24, 24), (16, 24), (24, 16), (12, 12), (9, 16), (16, 9)),
    *((8, 24), (24, 8), (12, 16), (16, 12), (10, 24), (24, 10), (12, 20), (20, 12), (15, 16)),
)
VAE_GRIDS = ((16, 16), (8, 8), (24, 24), (8, 24))


# --- latents -------------------------------------------------------------------------------------


def patchify(z: Tensor) -> Tensor:
    """(B, 32, 2h, 2w) -> (B, 128, h, w), channel order c, row, column with c slowest."""
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


def unpatchify(z: Tensor) -> Tensor:
    """The inverse of `patchify`."""
    b, c, h, w = z.shape
    return z.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)


def pack(z: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)."""
    return z.flatten(2).transpose(1, 2)


def unpack(x: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `pack`."""
    return x.transpose(1, 2).unflatten(2, (h, w))


def bn_moments(vae: AutoencoderKLFlux2) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the 128 patchified channels, (1, 128, 1, 1) float32."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    return mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)


def encode_pictures(vae: AutoencoderKLFlux2, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] -> normalised latents (B, 128, H/16, W/16) float32."""
    moments = vae.quant_conv(vae.encoder(pictures.to(vae.dtype)))
    mean, std = bn_moments(vae)
    return (patchify(moments[:, : VAE["latent_channels"]].float()) - mean) / std


def decode_latents(vae: AutoencoderKLFlux2, latents: Tensor) -> Tensor:
    """The inverse of `encode_pictures`, up to the autoencoder's error."""
    mean, std = bn_moments(vae)
    return vae.decoder(vae.post_quant_conv(unpatchify(latents * std + mean).to(vae.dtype))).float()


# --- data ----------------------------------------------------------------------------------------


@dataclass
class Prompts:
    """A pool of prompts on the device: ids (N, K) int16, lengths (N,) and what they describe."""

    ids: Tensor
    lengths: Tensor
    scenes: world.Scenes
    pad: int

    def sample(self, count: int, positions: int) -> tuple[Tensor, Tensor, world.Scenes]:
        """Random ids (count, positions) int64, mask (count, 1, positions, keys) and scenes.

        The keys are cut to the pool's longest prompt: no query may attend beyond it.
        """
        device = self.ids.device
        rows = torch.randint(len(self.ids), (count,), device=device)
        ids = F.pad(self.ids[rows].long(), (0, positions - self.ids.shape[1]), value=self.pad)
        keys = torch.arange(self.ids.shape[1], device=device)
        causal = keys[None] <= torch.arange(positions, device=device)[:, None]
        mask = causal[None] & (keys < self.lengths[rows][:, None])[:, None]
        return ids, mask[:, None], self.scenes[rows]


def make_prompts(tokenizer: Path, count: int, tokens: int, seed: int, talk: bool) -> Prompts:
    """A pool of `count` prompts of at most `tokens` tokens; `talk` makes all of them long."""
    share = 4000
    work = [(tokenizer, share, tokens, 1000 * seed + i, talk) for i in range(-(-count // share))]
    with ProcessPoolExecutor() as pool:
        parts = list(pool.map(_share_of_prompts, work))
    pad = Tokenizer.from_file(str(tokenizer)).token_to_id("<|endoftext|>")
    ids, lengths, compositions = zip(*(row for part in parts for row in part), strict=True)
    padded = torch.tensor([row + [pad] * (tokens - len(row)) for row in ids], dtype=torch.int16)
    return Prompts(padded, torch.tensor(lengths), world.as_scenes(list(compositions)), pad)


def _share_of_prompts(
    work: tuple[Path, int, int, int, bool],
) -> list[tuple[list[int], int, world.Composition]]:
    path, count, tokens, seed, talk = work
    tokenizer, rng = Tokenizer.from_file(str(path)), random.Random(seed)
    rows: list[tuple[list[int], int, world.Composition]] = []
    while len(rows) < count:
        one = world.draw_composition(rng, pairs=0.62)
        text = world.describe(one, rng, chatter=rng.randint(4, 36) if talk else None)
        ids = tokenizer.encode(RENDER.format(text)).ids
        if len(ids) <= tokens:
            rows.append((ids, len(ids), one))
    return rows


def prompt_pools(work: Path, device: torch.device) -> tuple[Prompts, Prompts]:
    """(everyday prompts, long prompts); made once and kept in WORK."""
    kept = work / "prompts.pt"
    if not kept.exists():
        write_tokenizer(work / "tokenizer", corpus(), VOCABULARY)
        tokenizer = work / "tokenizer" / "tokenizer.json"
        torch.save(
            [
                make_prompts(tokenizer, 240_000, PROMPT_TOKENS, 1, talk=False),
                make_prompts(tokenizer, 16_000, POSITIONS, 2, talk=True),
            ],
            kept,
        )
    pools = torch.load(kept, weights_only=False)
    for pool in pools:
        pool.ids, pool.lengths = pool.ids.to(device), pool.lengths.to(device)
        pool.scenes = pool.scenes.to(device)
    return pools[0], pools[1]


def corpus() -> Iterator[str]:
    """What the tokenizer is trained on: prompts of the world."""
    rng = random.Random(0)
    for _ in range(30_000):
        yield world.describe(world.draw_composition(rng, pairs=0.62), rng)


def pick_grid(rng: random.Random, other: float = 0.3) -> tuple[int, int]:
    """The latent height and width of the next batch: 16 x 16 most often."""
    return rng.choice(OTHER_GRIDS) if rng.random() < other else (16, 16)


# --- the autoencoder -----------------------------------------------------------------------------


def train_vae(work: Path, seconds: float, batch: int, device: torch.device) -> None:
    """Learn to reconstruct pictures from noisy, batch-normalised latents; fix the statistics."""
    torch.manual_seed(0)
    pool, _ = prompt_pools(work, device)
    vae = AutoencoderKLFlux2(**VAE).to(device).train()
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = partial(_group_norm, module)
    optimiser = Muon(vae, lr=2e-3, matrices=lambda name, p: p.ndim == 4 and min(p.shape[:2]) > 3)
    steps = {grid: VaeStep(vae, pool, batch, grid) for grid in VAE_GRIDS}
    rng, log = random.Random(0), Log(work / "vae.log")
    started, step = time.monotonic(), 0
    while (done := (time.monotonic() - started) / seconds) < 1:
        optimiser.set_lr(2e-3 * min(1.0, (step + 1) / 100, 2 * (1.01 - done)))
        error = steps[VAE_GRIDS[0] if rng.random() < 0.8 else rng.choice(VAE_GRIDS)]()
        optimiser.step()
        step += 1
        if step % 500 == 0:
            spent = time.monotonic() - started
            log(f"vae {step} t={spent:.0f}s mean error {error.item() * 127.5:.3f}/255")
    fix_statistics(vae, pool)
    mean, std = bn_moments(vae)
    log(f"latent std from {std.min():.3f} to {std.max():.3f}, |mean| to {mean.abs().max():.3f}")
    torch.save(vae.state_dict(), work / "vae.pt")


class VaeStep:
    """Loss and gradients on fresh pictures of one size; on a GPU, replayed as a CUDA graph.

    The model is so small that launching its kernels takes longer than running them.
    """

    def __init__(
        self, vae: AutoencoderKLFlux2, pool: Prompts, batch: int, grid: tuple[int, int]
    ) -> None:
        self.vae, self.pool, self.grid = vae, pool, grid
        self.count = max(2, batch * 256 // (grid[0] * grid[1]))
        self.graph: torch.cuda.CUDAGraph | None = None
        if pool.ids.is_cuda:
            self._capture()

    def __call__(self) -> Tensor:
        """Leave the gradients in the parameters; the mean absolute error comes back."""
        pictures = vae_pictures(self.pool, self.count, *self.grid)
        if self.graph is None:
            self.vae.zero_grad()
            loss, error = vae_loss(self.vae, pictures)
            loss.backward()
            return error
        self.pictures.copy_(pictures)
        self.graph.replay()
        for p, grad in zip(self.vae.parameters(), self.grads, strict=True):
            p.grad = grad
        return self.error

    def _capture(self) -> None:
        self.pictures = vae_pictures(self.pool, self.count, *self.grid)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.vae.zero_grad()
                vae_loss(self.vae, self.pictures)[0].backward()
        torch.cuda.current_stream().wait_stream(side)
        self.vae.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            loss, self.error = vae_loss(self.vae, self.pictures)
            loss.backward()
        self.grads = [p.grad for p in self.vae.parameters()]


def vae_pictures(pool: Prompts, count: int, h: int, w: int) -> Tensor:
    """Pictures of the world; in every fourth, random colours, so that the latents are smooth."""
    _, _, scenes = pool.sample(count, POSITIONS)
    wild = torch.rand(count, 1, 1, device=pool.ids.device) < 0.25
    scenes.colours = torch.where(wild, torch.rand_like(scenes.colours) * 2 - 1, scenes.colours)
    noise = torch.randn(count, world.LAYOUT_CHANNELS, h, w, device=pool.ids.device)
    return world.draw(scenes, noise)


def _group_norm(module: nn.GroupNorm, x: Tensor) -> Tensor:
    """Group norm in the input's own type: under autocast it would be float32, for no gain."""
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = module.weight.to(x.dtype), module.bias.to(x.dtype)
        return F.group_norm(x, module.num_groups, weight, bias, module.eps)


def vae_loss(vae: AutoencoderKLFlux2, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, mean absolute error in units of [-1, 1])."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        moments = vae.quant_conv(vae.encoder(pictures))
    mean, logvar = moments.float().chunk(2, 1)
    z = patchify(mean)
    normal = vae.bn(z)
    level = 0.2 * torch.rand(len(z), 1, 1, 1, device=z.device)
    noisy = normal + level * torch.randn_like(normal)
    variance, centre = torch.var_mean(z, (0, 2, 3))
    std = (variance + vae.config.batch_norm_eps).sqrt()
    noisy = noisy * std.view(1, -1, 1, 1) + centre.view(1, -1, 1, 1)
    with torch.autocast(pictures.device.type, torch.bfloat16):
        out = vae.decoder(vae.post_quant_conv(unpatchify(noisy)))
    difference = out.float() - pictures
    # Keeps every channel at unit scale (none collapses), and gives the unused variances a value.
    scale = variance.clamp(min=1e-6).log().square().mean() + centre.square().mean()
    edges = sum(difference.diff(dim=d).abs().mean() for d in (2, 3))
    loss = difference.abs().mean() + difference.square().mean() + 0.5 * edges
    loss = loss + 1e-3 * scale + 1e-4 * (logvar + 4).square().mean()
    return loss, difference.detach().abs().mean()


@torch.no_grad()
def fix_statistics(vae: AutoencoderKLFlux2, pool: Prompts) -> None:
    """Replace the moving batch-norm statistics by those of many fresh pictures."""
    vae.eval()
    total = square = count = 0
    for _ in range(16):
        z = patchify(vae.quant_conv(vae.encoder(vae_pictures(pool, 128, 16, 16)))[:, : VAE["latent_channels"]])
        total = total + z.double().sum((0, 2, 3))
        square = square + z.double().square().sum((0, 2, 3))
        count += z.numel() // z.shape[1]
    mean = total / count
    vae.bn.running_mean.copy_(mean)
    vae.bn.running_var.copy_(square / count - mean.square())


# --- encoder and DiT -----------------------------------------------------------------------------


@dataclass
class BatchMask:
    """What a padded batch's lengths come to, as a tensor: (B, 1, positions, keys), True attends."""

    mask: Tensor


class TrainingAttention:
    """The masked causal attention over the first keys only: no valid key lies beyond them."""

    name = "training"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, attention_lengths: BatchMask) -> Tensor:
        mask = attention_lengths.mask
        groups, keys = query.shape[2] // key.shape[2], mask.shape[-1]
        key = key[:, :keys].repeat_interleave(groups, 2).transpose(1, 2)
        value = value[:, :keys].repeat_interleave(groups, 2).transpose(1, 2)
        out = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=mask)
        return out.transpose(1, 2)


class Student(nn.Module):
    """The encoder and the DiT as one trainable module."""

    def __init__(self) -> None:
        super().__init__()
        config = Qwen3Config(**ENCODER, rope_theta=ROPE_THETA)
        self.encoder = Qwen3Model(config, TAPS, TrainingAttention())
        self.dit = Flux2Transformer2DModel(**TRANSFORMER)
        _initialise(self.encoder, self.dit)
        # The residual stream stays in float32 under autocast: positions are read off it finely.
        for entry in (self.dit.x_embedder, self.dit.context_embedder):
            entry.register_forward_hook(lambda module, inputs, out: out.float())

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (B, S), mask -> text embeddings (B, S, 192)."""
        return torch.cat(self.encoder(ids, BatchMask(mask)), -1)

    def velocity(self, x: Tensor, sigma: Tensor, text: Tensor, grid: tuple[int, int]) -> Tensor:
        """x (B, h * w, 128), sigma (B,) -> (B, h * w, 128) float32."""
        text_ids, image_ids = position_ids(text.shape[1], grid, x.device)
        out = self.dit(x, text, sigma, image_ids, text_ids, None, return_dict=False)[0]
        return out[:, -x.shape[1] :].float()

    def compile_blocks(self) -> None:
        """Compile each kind of block once, for all depths, sizes and batches."""
        torch._dynamo.config.recompile_limit = 64
        # Two sizes that happen to be equal must not be taken for one.
        torch.fx.experimental._config.use_duck_shape = False
        for kind in (Qwen3DecoderLayer, Flux2TransformerBlock, Flux2SingleTransformerBlock):
            kind.forward = torch.compile(kind.forward, dynamic=True)


def _initialise(encoder: Qwen3Model, dit: Flux2Transformer2DModel) -> None:
    depth = 2 * len(encoder.layers)
    for name, p in encoder.named_parameters():
        if p.ndim == 2:
            std = 1.0 if "embed" in name else p.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std *= depth**-0.5
            nn.init.normal_(p, std=std)
    for name, p in dit.named_parameters():
        if p.ndim == 2:
            quiet = "modulation" in name or "norm_out" in name or name.startswith("proj_out")
            nn.init.normal_(p, std=0.02 if quiet else p.shape[1] ** -0.5 * 0.7)


def position_ids(text: int, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """(text, 4) and (h * w, 4) int64: (t, h, w, l) of every token."""
    zero = torch.zeros(1, dtype=torch.long, device=device)
    along = torch.arange(text, device=device)
    rows, columns = (torch.arange(n, device=device) for n in grid)
    return torch.cartesian_prod(zero, zero, zero, along), torch.cartesian_prod(zero, rows, columns, zero)


def schedule(tokens: int, steps: int = 4) -> list[float]:
    """The model's own sigmas, the last one 0 (Black Forest Labs' empirical shift)."""
    high = 0.00016927 * tokens + 0.45666666
    slope = (high - (8.73809524e-05 * tokens + 1.89833333)) / 190
    shift = math.exp(high if tokens > 4300 else slope * steps + high - 200 * slope)
    times = [1 - i / steps for i in range(steps)]
    return [shift / (shift + 1 / t - 1) for t in times] + [0.0]


class Flow:
    """One run of the second stage: data, models, optimisers and the clock."""

    def __init__(self, work: Path, seconds: float, device: torch.device, args: argparse.Namespace) -> None:
        torch.manual_seed(1 + args.seed)
        self.work, self.seconds, self.device, self.args = work, seconds, device, args
        self.rng = random.Random(args.seed)
        self.prompts, self.long_prompts = prompt_pools(work, device)
        self.vae = AutoencoderKLFlux2(**VAE).to(device)
        self.vae.load_state_dict(torch.load(work / "vae.pt", map_location=device))
        self.vae.eval().requires_grad_(False)
        statistics = copy.deepcopy(self.vae.bn)
        self.vae.bfloat16().bn = statistics
        self.student = Student().to(device)
        self.ema = Ema(self.student, 0.999)
        if not args.eager:
            self.student.compile_blocks()
        inner = ("layers.", "blocks.")
        self.optimiser = Muon(
            self.student, args.lr, lambda name, p: p.ndim == 2 and any(part in name for part in inner)
        )
        self.elapsed, self.step = 0.0, 0
        self.log = Log(work / "flow.log")
        if (work / "flow.pt").exists():
            self._resume(torch.load(work / "flow.pt", map_location=device, weights_only=False))

    def run(self) -> None:
        """Train until the clock says so, saving now and then."""
        self.warm_up()
        last, losses, saved = time.monotonic(), [], self.elapsed
        while self.elapsed < self.seconds:
            done = self.elapsed / self.seconds
            self.optimiser.set_lr(self.args.lr * self._rate(done))
            loss = self._phase(done)()
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.ema.update(self.student)
            self.step += 1
            losses.append(loss.detach())
            if self.step % 100 == 0 or self.step in (1, 20):
                mean = torch.stack(losses).mean().item()
                losses.clear()
                now = time.monotonic()
                self.log(
                    f"flow {self.step} t={self.elapsed:.0f}s {self._phase(done).__name__} "
                    f"loss {mean:.5f} rate {self._rate(done):.3f} check {self.check():.5f}"
                )
                self.elapsed += now - last
                last = time.monotonic()
                if self.elapsed - saved > 100:
                    self.save()
                    saved, last = self.elapsed, time.monotonic()
            elif self.step % 10 == 0:
                torch.cuda.synchronize() if self.device.type == "cuda" else None
                now = time.monotonic()
                self.elapsed += now - last
                last = now
        self.save()

    def warm_up(self) -> None:
        """Compile every phase before the clock starts."""
        started = time.monotonic()
        for phase in (self.match, *[self.follow] * 4, self.unroll):
            phase().backward()
        self.optimiser.zero_grad()
        self.check()
        self.log(f"ready after {time.monotonic() - started:.0f}s")

    def _rate(self, done: float) -> float:
        warm = min(1.0, (self.step + 1) / 300)
        return warm * min(1.0, max(0.0, 1 - done) / (1 - self.args.decay_from))

    def _phase(self, done: float) -> Callable[[], Tensor]:
        if done < self.args.match_until:
            return self.match
        return self.follow if done < self.args.follow_until else self.unroll

    def match(self) -> Tensor:
        """Flow matching with few text positions."""
        batch = self.batch(SHORT_POSITIONS, self.args.batch)
        return self._matching_loss(*batch)

    def follow(self) -> Tensor:
        """All text positions; half of the batches one step down the student's own trajectory."""
        batch = self.batch(POSITIONS, self.args.batch)
        if self.rng.random() < 0.5:
            return self._matching_loss(*batch)
        text, noise, target, _, grid = batch
        sigmas = schedule(grid[0] * grid[1])
        stop = self.rng.randint(1, 3)
        x = noise
        with self._autocast():
            for k in range(stop):
                # Detached rather than run without gradients, which would compile everything twice.
                v = self._at(x, sigmas[k], text.detach(), grid).detach()
                x = x + (sigmas[k + 1] - sigmas[k]) * v
            out = self._at(x, sigmas[stop], text, grid)
        return F.mse_loss(out, (x - target) / sigmas[stop])

    def unroll(self) -> Tensor:
        """All four steps with gradients through them, and the decoded picture at the end."""
        text, noise, target, pictures, grid = self.batch(POSITIONS, self.args.batch // 4)
        sigmas = schedule(grid[0] * grid[1])
        x, loss = noise, torch.zeros((), device=self.device)
        with self._autocast():
            for k in range(4):
                v = self._at(x, sigmas[k], text, grid)
                loss = loss + (0.1, 0.2, 0.4, 1.0)[k] * F.mse_loss(x - sigmas[k] * v, target)
                x = x + (sigmas[k + 1] - sigmas[k]) * v
        few = max(1, len(x) * 2 // 3)
        out = decode_latents(self.vae, unpack(x[:few], *grid))
        difference = out - pictures[:few]
        return loss + self.args.pixels * (difference.abs().mean() + difference.square().mean())

    def _matching_loss(
        self, text: Tensor, noise: Tensor, target: Tensor, _: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        steps = torch.tensor(schedule(grid[0] * grid[1])[:4], device=self.device)
        count = len(noise)
        own = steps[torch.randint(4, (count,), device=self.device)]
        sigma = torch.where(torch.rand(count, device=self.device) < 0.6, own, torch.rand_like(own))
        x = target + sigma[:, None, None] * (noise - target)
        with self._autocast():
            out = self.student.velocity(x, sigma, text, grid)
        return F.mse_loss(out, noise - target)

    def _at(self, x: Tensor, sigma: float, text: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.student.velocity(x, x.new_full((len(x),), sigma), text, grid)

    def batch(
        self, positions: int, count: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, int]]:
        """Embeddings, noise and right latents (B, h * w, 128), pictures, and the grid (h, w).

        Each prompt is embedded once and drawn from two noises.
        """
        grid = pick_grid(self.rng)
        count = max(2, count * 256 // max(256, grid[0] * grid[1]) // 2 * 2)
        pool = self.prompts
        if positions == POSITIONS and self.rng.random() < 0.08:
            pool, count = self.long_prompts, max(2, count // 8 * 2)
        ids, mask, scenes = pool.sample(count // 2, positions)
        twice = torch.arange(count, device=self.device) // 2
        with self._autocast():
            text = self.student.embed(ids, mask)[twice]
        noise = torch.randn(count, 128, *grid, device=self.device)
        pictures = world.draw(scenes[twice], noise)
        with torch.no_grad():
            target = encode_pictures(self.vae, pictures)
        return text, pack(noise), pack(target), pictures, grid

    def check(self) -> float:
        """Mean squared latent error after four steps of the averaged model on fixed prompts."""
        state, rng_state = torch.random.get_rng_state(), self.rng.getstate()
        cuda = torch.cuda.get_rng_state() if self.device.type == "cuda" else None
        torch.manual_seed(7)
        self.rng.seed(3)
        positions = SHORT_POSITIONS if self.elapsed < self.args.match_until * self.seconds else POSITIONS
        with self.ema.applied(self.student):
            text, x, target, _, grid = self.batch(positions, 128)
            sigmas = schedule(grid[0] * grid[1])
            with self._autocast():
                for k in range(4):
                    v = self._at(x, sigmas[k], text.detach(), grid).detach()
                    x = x + (sigmas[k + 1] - sigmas[k]) * v
        torch.random.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        self.rng.setstate(rng_state)
        return F.mse_loss(x, target).item()

    def save(self) -> None:
        """Write WORK/flow.pt in one move."""
        state = {
            "student": self.student.state_dict(),
            "ema": self.ema.averages,
            "optimiser": self.optimiser.state_dict(),
            "elapsed": self.elapsed,
            "step": self.step,
            "rng": self.rng.getstate(),
        }
        torch.save(state, self.work / "flow.tmp")
        (self.work / "flow.tmp").rename(self.work / "flow.pt")

    def _resume(self, state: dict[str, object]) -> None:
        self.student.load_state_dict(state["student"])
        self.ema.averages = state["ema"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.elapsed, self.step = state["elapsed"], state["step"]
        self.rng.setstate(state["rng"])
        torch.manual_seed(self.step)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)


# --- the checkpoint ------------------------------------------------------------------------------


def write(work: Path, to: Path, dtype: torch.dtype) -> None:
    """Write the averaged weights as a diffusers-layout folder."""
    state = torch.load(work / "flow.pt", map_location="cpu", weights_only=False)["ema"]
    parts = {name: {} for name in ("encoder", "dit")}
    for name, tensor in state.items():
        part, _, key = name.partition(".")
        parts[part][key] = tensor
    encoder = {f"model.{key}": tensor for key, tensor in parts["encoder"].items()}
    # Stock pipelines build all 28 layers and the final norm; nothing reads what these compute.
    last = [key for key in encoder if key.startswith("model.layers.26.")]
    encoder |= {key.replace(".26.", ".27."): torch.zeros_like(encoder[key]) for key in last}
    encoder["model.norm.weight"] = torch.ones(ENCODER["hidden_size"])
    vae = torch.load(work / "vae.pt", map_location="cpu")

    write_weights(to / "text_encoder" / "model.safetensors", encoder, dtype)
    write_weights(to / "transformer" / "diffusion_pytorch_model.safetensors", parts["dit"], dtype)
    write_weights(to / "vae" / "diffusion_pytorch_model.safetensors", vae, dtype)
    write_configs(to, str(dtype).removeprefix("torch."))
    write_tokenizer(to / "tokenizer", corpus(), VOCABULARY)


def write_weights(path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    """One safetensors file; integers keep their type, statistics their float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exact = ("running_mean", "running_var")
    tensors = {
        name: (t if not t.is_floating_point() or name.endswith(exact) else t.to(dtype)).contiguous()
        for name, t in state.items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


def write_configs(to: Path, dtype: str) -> None:
    """The json files beside the weights."""
    write_model_index(to, distilled=True)
    write_scheduler_config(to)
    diffusers = {"_diffusers_version": "0.42.1"}
    write_json(to / "transformer" / "config.json", {"_class_name": "Flux2Transformer2DModel", **diffusers, **TRANSFORMER})
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    write_json(to / "vae" / "config.json", {"_class_name": "AutoencoderKLFlux2", **diffusers, **VAE, **blocks})
    write_json(
        to / "text_encoder" / "config.json",
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "max_position_embeddings": 40960,
            "rope_theta": ROPE_THETA,
            "rope_scaling": None,
            "sliding_window": None,
            "use_sliding_window": False,
            "max_window_layers": 28,
            "tie_word_embeddings": True,
            "torch_dtype": dtype,
            "use_cache": True,
            **ENCODER,
        },
    )


class Log:
    """Lines to a file and to the terminal."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def main() -> None:
    """Parse the command line and run one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=("vae", "flow", "write"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path)
    parser.add_argument("--seconds", type=float, default=720)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--match-until", type=float, default=0.4)
    parser.add_argument("--follow-until", type=float, default=0.68)
    parser.add_argument("--decay-from", type=float, default=0.45)
    parser.add_argument("--pixels", type=float, default=1.0)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if args.stage == "vae":
        train_vae(args.work, args.seconds, args.batch, device)
    elif args.stage == "flow":
        Flow(args.work, args.seconds, device, args).run()
    else:
        write(args.work, args.to, getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
