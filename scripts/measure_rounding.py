"""What each rounding choice changes: the table of docs/numerics.md.

    python scripts/measure_rounding.py MODEL --size 256

Draws in bfloat16 on the CPU, as klein does, as diffusers does, and with one choice changed at a
time; all against klein in float32.
"""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import klein_cli.models.flux2 as flux2
import klein_cli.models.qwen3 as qwen3
from klein_cli.check.metrics import Pixels, mean_abs_diff, psnr, relative_error
from klein_cli.check.official import reference
from klein_cli.check.prompts import PROMPTS
from klein_cli.checkpoints.resolve import Snapshot, resolve
from klein_cli.models.vae import latent_scale
from klein_cli.pipeline import Pipeline, Trace, choose
from klein_cli.recipe import Recipe
from klein_cli.sampling.latents import Latents, noise
from klein_cli.sampling.loop import Callback
from klein_cli.settings import Settings

HALF = torch.bfloat16
NOTHING: AbstractContextManager[Any] = nullcontext()
Made = list[tuple[Trace, Pixels]]


def rounded(tensor: Tensor) -> Tensor:
    return tensor.to(HALF).float()


def rounded_noise(*arguments: Any, **named: Any) -> Latents:
    drawn = noise(*arguments, **named)
    return Latents(rounded(drawn.packed), drawn.grid)


def rounded_loop(
    velocity: Any, x: Tensor, sigmas: Tensor, condition: Any, *, callback: Callback, **other: Any
) -> Tensor:
    """Latents and steps in bfloat16, as diffusers keeps them."""
    for step in range(len(sigmas) - 1):
        towards = velocity(x, sigmas[step : step + 1], condition).to(HALF)
        x = rounded(x + rounded(sigmas[step + 1] - sigmas[step]) * towards)
        callback(step + 1, float(sigmas[step + 1]), x)
    return x


def rounded_angles(config: Any, positions: int, device: Any, dtype: torch.dtype) -> Any:
    """The encoder's rotary frequencies as `.to(bfloat16)` on the module leaves them."""
    exponent = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequency = rounded(1.0 / config.rope_theta**exponent)
    angle = torch.arange(positions).float()[:, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)[:, None]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def single_angles(ids: Tensor, axes: Any, theta: float) -> Any:
    """The DiT's angles in float32."""
    parts = [
        ids[:, axis, None].float() / theta ** (torch.arange(0, size, 2).float() / size)
        for axis, size in enumerate(axes)
    ]
    angle = torch.cat(parts, dim=-1).repeat_interleave(2, dim=-1)[:, None]
    return angle.cos(), angle.sin()


def rounded_scale(bn: torch.nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    mean, deviation = latent_scale(bn)
    return rounded(mean), rounded(deviation)


def sigma_first(sigma: Tensor, dtype: torch.dtype) -> Tensor:
    return sigma.to(dtype) * 1000


def draw(
    snapshot: Snapshot,
    recipes: list[Recipe],
    dtype: str,
    change: AbstractContextManager[Any] = NOTHING,
) -> Made:
    """Our drawing, within the context of a change."""
    settings = choose(Settings(device="cpu", dtype=dtype, attention="sdpa"))
    pipeline = Pipeline.load(snapshot, settings)
    made = []
    with change:
        for recipe in recipes:
            trace = Trace()
            (picture,) = pipeline.render([recipe], trace=trace)
            made.append((trace, picture))
    return made


CHANGES: dict[str, AbstractContextManager[Any]] = {
    "klein": NOTHING,
    "latents and steps rounded after each step": patch("klein_cli.pipeline.denoise", rounded_loop),
    "noise rounded": patch("klein_cli.pipeline.noise", rounded_noise),
    "timestep from the rounded sigma (764)": patch(
        "klein_cli.engines.native.as_timestep", sigma_first
    ),
    "mean and deviation of the latents rounded": patch(
        "klein_cli.engines.native.latent_scale", rounded_scale
    ),
    "the encoder's rotary frequencies rounded": patch.object(
        qwen3, "rotary_embedding", rounded_angles
    ),
    "the DiT's rotary angles in float32": patch.object(flux2, "rotary_embedding", single_angles),
}


def row(name: str, made: Made, exact: Made) -> str:
    """One line of the table: the mean over the prompts."""
    pairs = list(zip(made, exact, strict=True))
    text = np.mean([relative_error(a[0].embeddings[0], b[0].embeddings[0]) for a, b in pairs])
    end = np.mean([relative_error(a[0].latents[-1], b[0].latents[-1]) for a, b in pairs])
    apart = np.mean([mean_abs_diff(a[1], b[1]) for a, b in pairs])
    noise_ratio = np.mean([psnr(a[1], b[1]) for a, b in pairs])
    return f"| {name} | {text:.2e} | {end:.2e} | {apart:.3f} | {noise_ratio:.1f} |"


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    snapshot = resolve(options.model)
    side = options.size
    recipes = [
        Recipe(prompt=p, seed=s, width=side, height=side, steps=4, guidance=1.0, model="x")
        for s, p in enumerate(PROMPTS)
    ]
    exact = draw(snapshot, recipes, "float32")
    print("| in bfloat16 | embeddings | last latents | mean_abs_diff | psnr |")
    print("| --- | --- | --- | --- | --- |")
    for name, change in CHANGES.items():
        print(row(name, draw(snapshot, recipes, "bfloat16", change), exact), flush=True)
    settings = choose(Settings(device="cpu", dtype="bfloat16"))
    theirs = reference(snapshot.root, settings, recipes, lambda event: None)
    print(row("diffusers", theirs, exact))


if __name__ == "__main__":
    main()
