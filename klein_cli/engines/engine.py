"""The door between the loop and the modules: the ways into the latent space and out of it, what a
batch is conditioned on, and its velocity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from klein_cli.checkpoints.load import Change
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.errors import ModelError
from klein_cli.optimize.part import Part

_VAE_BLOCKS = 4
_PATCH = [2, 2]
_OTHER_MODEL = "the model's parts are not from one FLUX.2 [klein] model"

Condition = TypeVar("Condition")
"""What does not change between the steps of a batch, as its engine needs it."""


class Engine(Protocol[Condition]):
    """A DiT and a VAE on a device. Their weights may still be on their way: calls wait for them.

    `parts` are the "transformer" and the "vae"; `latent_channels` is the width of a
    token of latents.
    """

    latent_channels: int
    parts: Mapping[str, Part[Any]]

    def adapt(self, changes: Mapping[str, Change]) -> None:
        """Other changes of the transformer's tensors, or none, in place of those that it has.

        Waits for them. What was computed with the old ones is worth nothing any more. Raises
        ModelError when a file fails; then it must be called again before anything is computed.
        """
        ...

    def encode(self, image: Tensor) -> Tensor:
        """One image (3, 16h, 16w) from -1 to 1 -> its normalised latents (h * w, C) float32."""
        ...

    def refer(self, references: Tensor, ids: Tensor) -> Tensor:
        """What conditions hold of references, made once for all images of the same ones.

        `references` (1, R, C) are their latents in a row, `ids` (R, 4) int64 their positions.
        Returns (1, ...): the same, or where the model keeps them keys and values. Raises
        OutOfMemoryError where these would not fit, UsageError where the engine has none.
        """
        ...

    def condition(self, text: Tensor, ids: Tensor, references: Tensor | None = None) -> Condition:
        """What a batch is conditioned on.

        `text` (B, T, D) are the prompts' embeddings, `ids` (T + N + R, 4) int64 the positions of
        text, latents and references, and `references` (B or 1, ...) is what `refer` made of those.
        """
        ...

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The velocity (B, N, C) of latents (B, N, C) at the noise level sigma (1,).

        References have none. `sigma` is best on the host.
        """
        ...

    def decode(self, latents: Tensor, grid: tuple[int, int], *, tiled: bool = False) -> Tensor:
        """One image's latents (h * w, C) float32 -> (3, 16h, 16w), from -1 to 1.

        `tiled` saves memory at the price of small differences: `klein_cli.sampling.decode`.
        """
        ...


def one_by_one(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """`function` of (B or 1, ...) tensors, one image at a time; what there is one of is everyone's.

    On a CPU a batch is shared out among the threads, and where a thread's share ends within a row,
    the rest of it takes other instructions, which round otherwise: see `Device.one_by_one`.
    """
    count = max(map(len, batches))
    each = (torch.split(batch.expand(count, *batch.shape[1:]), 1) for batch in batches)
    return torch.cat([function(*image) for image in zip(*each, strict=True)])


def as_timestep(sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """The timestep (1,) of a noise level, from 1000 down to 0, rounded to the model's dtype.

    As diffusers' pipeline rounds it. In bfloat16 that is another number than the one that sigma
    rounded first would give: at the last of four steps 768, not 764.
    """
    return (sigma * 1000).to(dtype)


def check_fit(snapshot: Snapshot, dit: Any, vae: Any, text_channels: int) -> None:
    """That the parts fit together, before a matrix product says it in other words.

    `dit` and `vae` are the configurations, with the official names as attributes.
    """
    place = snapshot.part("transformer").place
    widths = vae.block_out_channels, vae.decoder_block_out_channels or vae.block_out_channels
    if {len(each) for each in widths} != {_VAE_BLOCKS} or list(vae.patch_size) != _PATCH:
        raise ModelError(
            f"{snapshot.part('vae').place} does not make 16 pixels a token", _OTHER_MODEL
        )
    wanted = {"in_channels": 4 * vae.latent_channels, "joint_attention_dim": text_channels}
    for name, number in wanted.items():
        found = getattr(dit, name)
        if found != number:
            raise ModelError(
                f"{place}: {name} is {found}, not {number} as the other parts need", _OTHER_MODEL
            )
    if getattr(dit, "guidance_embeds", False):
        raise ModelError(f"{place} embeds the guidance, which klein models do not", _OTHER_MODEL)
