"""The diffusers engine: the DiT and the VAE as diffusers builds them.

The portable engine, and the one that others are compared to. Importing it costs seconds: import
it late.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from torch import Tensor

from klein_cli.checkpoints.load import Loading, load_weights, part_config, without_memory
from klein_cli.checkpoints.reader import Reader
from klein_cli.engines.engine import as_timestep, check_fit, picture_by_picture
from klein_cli.errors import ModelError
from klein_cli.optimize.backend import PLAIN, Tools


class DiffusersEngine:
    """See `klein_cli.engines.engine.Engine`."""

    name = "diffusers"
    skipped: tuple[str, ...] = ()

    def __init__(
        self, dit: Any, vae: Any, dtype: torch.dtype, loadings: dict[str, Loading]
    ) -> None:
        self._dit = dit
        self._vae = vae
        self._dtype = dtype
        self.loadings = loadings
        self.latent_channels: int = dit.config.in_channels

    @classmethod
    def from_snapshot(
        cls,
        root: Path,
        *,
        text_channels: int,
        device: torch.device,
        dtype: torch.dtype,
        tools: Tools = PLAIN,
        reader: Reader | None = None,
    ) -> DiffusersEngine:
        """The engine of a snapshot whose text embeddings have `text_channels` channels.

        The modules are diffusers' own, and so is how they compute: of the `tools` they need none.
        Raises ModelError when a part is damaged or is not FLUX.2 [klein]'s.
        """
        dit = _part(Flux2Transformer2DModel, root / "transformer")
        vae = _part(AutoencoderKLFlux2, root / "vae")
        check_fit(root, dit.config, vae.config, text_channels)
        modules = {"transformer": dit, "vae": vae}
        loadings = {
            name: load_weights(module, root / name, device=device, dtype=dtype, reader=reader)
            for name, module in modules.items()
        }
        return cls(dit, vae, dtype, loadings)

    @cached_property
    def latent_mean(self) -> Tensor:
        """(channels,) float32."""
        self.loadings["vae"].wait()
        mean: Tensor = self._vae.bn.running_mean
        return mean

    @cached_property
    def latent_deviation(self) -> Tensor:
        """(channels,) float32."""
        self.loadings["vae"].wait()
        return torch.sqrt(self._vae.bn.running_var + self._vae.bn.eps)

    def transformer(self, latents: Tensor, sigma: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        """The velocity (B, N, C) at a noise level.

        The module takes sigma and multiplies by 1000 itself; it gets the rounded timestep back.
        """
        self.loadings["transformer"].wait()
        timestep = as_timestep(sigma, self._dtype).to(latents.device) / 1000
        words = text.shape[1]

        def velocity(latents: Tensor, text: Tensor) -> Tensor:
            predicted: Tensor = self._dit(
                hidden_states=latents,
                encoder_hidden_states=text,
                timestep=timestep,
                txt_ids=ids[:words],
                img_ids=ids[words:],
                guidance=None,
                return_dict=False,
            )[0]
            return predicted

        batches = latents.to(self._dtype), text.to(self._dtype)
        if latents.device.type == "cpu":
            return picture_by_picture(velocity, *batches)
        return velocity(*batches)

    def decode(self, latents: Tensor) -> Tensor:
        """(1, c, 2h, 2w) latents -> (1, 3, 16h, 16w) pictures, from -1 to 1."""
        self.loadings["vae"].wait()
        picture: Tensor = self._vae.decode(latents.to(self._dtype), return_dict=False)[0]
        return picture

    def forget(self) -> None:
        """Nothing is kept here."""


def _part(kind: Any, folder: Path) -> Any:
    """A module from its config.json, without memory, network or code of the snapshot's own."""
    config = part_config(folder, "_class_name", kind.__name__)
    try:
        with without_memory():
            return kind.from_config(config)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"{folder / 'config.json'} does not describe a {kind.__name__}: {error}",
            "download the model again",
        ) from None
