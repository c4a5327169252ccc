"""The door between the loop and the modules: two callables and the scale of the latents.

Whatever changes weights, such as an adapter, has to do it between their loading and
`Tools.prepare`, which fuses or quantises them: in the `then` of `load_weights`, by official name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from klein_cli.checkpoints.load import Loading
from klein_cli.checkpoints.reader import Reader
from klein_cli.errors import ModelError
from klein_cli.optimize.backend import PLAIN, Tools

_VAE_BLOCKS = 4
_PATCH = [2, 2]
_OTHER_MODEL = "the snapshot's parts are not from one FLUX.2 [klein] model"


class Engine(Protocol):
    """A DiT and a VAE on a device. Their weights may still be on their way: calls wait for them.

    `latent_mean`, `latent_deviation` (latent_channels,) float32 undo the normalisation of the
    latents; `skipped` names the tensors of the snapshot that are not read; `loadings` are the
    parts' weights by the parts' names.
    """

    name: str
    latent_channels: int
    latent_mean: Tensor
    latent_deviation: Tensor
    skipped: tuple[str, ...]
    loadings: Mapping[str, Loading]

    def transformer(self, latents: Tensor, sigma: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        """The velocity (B, N, C) of latents (B, N, C) at the noise level sigma (1,).

        `text` (B, T, D) are the prompts' embeddings, `ids` (T + N, 4) the positions of text and
        latents: the same objects at every step, which nobody changes. `sigma` is best on the host.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(1, c, 2h, 2w) latents -> (1, 3, 16h, 16w) pictures, from -1 to 1."""
        ...

    def forget(self) -> None:
        """Let go of what is kept of the last pictures."""
        ...


def load_engine(
    name: str,
    root: Path,
    *,
    text_channels: int,
    device: torch.device,
    dtype: torch.dtype,
    tools: Tools = PLAIN,
    reader: Reader | None = None,
) -> Engine:
    """The engine called `name` with the weights of the snapshot in `root`.

    `text_channels` is the width of the text embeddings that it will be given. With a `reader` the
    weights come while the caller goes on. Raises ModelError when a part is damaged or does not fit
    the others.
    """
    kind: Any
    if name == "native":
        from klein_cli.engines.native import NativeEngine as kind
    elif name == "diffusers":
        from klein_cli.engines.diffusers import DiffusersEngine as kind
    else:
        raise ValueError(f"no engine is called {name!r}")
    engine: Engine = kind.from_snapshot(
        root, text_channels=text_channels, device=device, dtype=dtype, tools=tools, reader=reader
    )
    return engine


def picture_by_picture(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """`function` of (B, ...) tensors, one picture at a time.

    On a CPU a batch is shared out among the threads, and where a thread's share ends within a row,
    the rest of it takes other instructions, which round otherwise.
    """
    pictures = zip(*(torch.split(batch, 1) for batch in batches), strict=True)
    return torch.cat([function(*picture) for picture in pictures])


def as_timestep(sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """The timestep (1,) of a noise level, from 1000 down to 0, rounded to the model's dtype.

    As diffusers' pipeline rounds it. In bfloat16 that is another number than the one that sigma
    rounded first would give: at the last of four steps 768, not 764.
    """
    return (sigma * 1000).to(dtype)


def check_fit(root: Path, dit: Any, vae: Any, text_channels: int) -> None:
    """That the parts fit together, before a matrix product says it in other words.

    `dit` and `vae` are the configurations, with the official names as attributes.
    """
    if len(vae.block_out_channels) != _VAE_BLOCKS or list(vae.patch_size) != _PATCH:
        raise ModelError(f"{root / 'vae'} does not make 16 pixels a token", _OTHER_MODEL)
    wanted = {"in_channels": 4 * vae.latent_channels, "joint_attention_dim": text_channels}
    for name, number in wanted.items():
        found = getattr(dit, name)
        if found != number:
            raise ModelError(
                f"{root / 'transformer'}: {name} is {found}, not {number} as the other parts need",
                _OTHER_MODEL,
            )
    if getattr(dit, "guidance_embeds", False):
        raise ModelError(
            f"{root / 'transformer'} embeds the guidance, which klein models do not", _OTHER_MODEL
        )
