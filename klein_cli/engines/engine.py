"""The door between the loop and the modules: two callables and the scale of the latents."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Engine(Protocol):
    """A DiT and a VAE on a device.

    `latent_mean`, `latent_deviation` (channels,) float32 undo the normalisation of the latents.
    """

    name: str
    latent_mean: Tensor
    latent_deviation: Tensor

    def transformer(self, latents: Tensor, sigma: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        """The velocity (B, N, C) of latents (B, N, C) at the noise level sigma (1,).

        `text` (B, T, D) are the prompts' embeddings, `ids` (T + N, 4) the positions of text and
        latents.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(1, c, 2h, 2w) latents -> (1, 3, 16h, 16w) pictures, from -1 to 1."""
        ...


def load_engine(
    name: str, root: Path, *, text_channels: int, device: torch.device, dtype: torch.dtype
) -> Engine:
    """The engine called `name` with the weights of the snapshot in `root`.

    `text_channels` is the width of the text embeddings that it will be given. Raises ModelError
    when a part is damaged or does not fit the others.
    """
    if name != "diffusers":
        raise ValueError(f"no engine is called {name!r}")
    from klein_cli.engines.diffusers import DiffusersEngine

    return DiffusersEngine.from_snapshot(
        root, text_channels=text_channels, device=device, dtype=dtype
    )
