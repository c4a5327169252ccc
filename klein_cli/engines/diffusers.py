"""The diffusers engine: the DiT and the VAE as diffusers builds them.

The portable engine, and the one that others are compared to. Importing it costs seconds: import
it late.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from torch import Tensor

from klein_cli.errors import ModelError
from klein_cli.load import load_weights, part_config

_VAE_BLOCKS = 4
_PATCH = [2, 2]
_OTHER_MODEL = "the snapshot's parts are not from one FLUX.2 [klein] model"


class DiffusersEngine:
    """See `klein_cli.engines.engine.Engine`."""

    name = "diffusers"

    def __init__(self, dit: Any, vae: Any, dtype: torch.dtype) -> None:
        self._dit = dit
        self._vae = vae
        self._dtype = dtype
        self.latent_mean: Tensor = vae.bn.running_mean
        self.latent_deviation: Tensor = torch.sqrt(vae.bn.running_var + vae.bn.eps)

    @classmethod
    def from_snapshot(
        cls, root: Path, *, text_channels: int, device: torch.device, dtype: torch.dtype
    ) -> DiffusersEngine:
        """The engine of a snapshot whose text embeddings have `text_channels` channels.

        Raises ModelError when a part is damaged or is not FLUX.2 [klein]'s.
        """
        dit = _part(Flux2Transformer2DModel, root / "transformer")
        vae = _part(AutoencoderKLFlux2, root / "vae")
        _check_fit(root, dit, vae, text_channels)
        load_weights(dit, root / "transformer", device=device, dtype=dtype)
        load_weights(vae, root / "vae", device=device, dtype=dtype)
        return cls(dit, vae, dtype)

    def transformer(self, latents: Tensor, sigma: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        """The velocity (B, N, C) at a noise level.

        The module takes sigma and multiplies by 1000 itself, in the model's dtype. It is handed
        sigma by way of the timestep, rounded as diffusers' pipeline rounds it: in bfloat16 that
        is another sigma (the last of four steps: 768, where sigma alone would give 764).
        """
        timestep = (sigma * 1000).to(self._dtype) / 1000
        words = text.shape[1]
        velocity: Tensor = self._dit(
            hidden_states=latents.to(self._dtype),
            encoder_hidden_states=text.to(self._dtype),
            timestep=timestep,
            txt_ids=ids[:words],
            img_ids=ids[words:],
            guidance=None,
            return_dict=False,
        )[0]
        return velocity

    def decode(self, latents: Tensor) -> Tensor:
        """(1, c, 2h, 2w) latents -> (1, 3, 16h, 16w) pictures, from -1 to 1."""
        picture: Tensor = self._vae.decode(latents.to(self._dtype), return_dict=False)[0]
        return picture


def _part(kind: Any, folder: Path) -> Any:
    """A module from its config.json, without memory, network or code of the snapshot's own."""
    config = part_config(folder, "_class_name", kind.__name__)
    try:
        with torch.device("meta"):
            return kind.from_config(config)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"{folder / 'config.json'} does not describe a {kind.__name__}: {error}",
            "download the model again",
        ) from None


def _check_fit(root: Path, dit: Any, vae: Any, text_channels: int) -> None:
    """That the parts fit together, before a matrix product says it in other words."""
    patch = list(vae.config.patch_size)
    if len(vae.config.block_out_channels) != _VAE_BLOCKS or patch != _PATCH:
        raise ModelError(f"{root / 'vae'} does not make 16 pixels a token", _OTHER_MODEL)
    channels = 4 * vae.config.latent_channels
    pairs = {
        "in_channels": channels,
        "joint_attention_dim": text_channels,
        "guidance_embeds": False,
    }
    for name, wanted in pairs.items():
        found = dit.config[name]
        if found != wanted:
            raise ModelError(
                f"{root / 'transformer'}: {name} is {found}, not {wanted} as the other parts need",
                _OTHER_MODEL,
            )
