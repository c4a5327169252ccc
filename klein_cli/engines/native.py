"""The native engine: our own DiT and VAE decoder, importing neither diffusers nor transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from klein_cli.engines.engine import as_timestep, check_fit
from klein_cli.load import load_weights, part_config, without_memory
from klein_cli.models.flux2 import Flux2Config, Flux2Transformer
from klein_cli.models.vae import VaeConfig, VaeDecoder, latent_scale

_ENCODING = ("encoder.", "quant_conv.")


class NativeEngine:
    """See `klein_cli.engines.engine.Engine`."""

    name = "native"

    def __init__(
        self,
        dit: Flux2Transformer,
        vae: VaeDecoder,
        dtype: torch.dtype,
        skipped: tuple[str, ...] = (),
    ) -> None:
        self._dit = dit
        self._vae = vae
        self._dtype = dtype
        self.skipped = skipped
        self.latent_mean, self.latent_deviation = latent_scale(vae.bn)

    @classmethod
    def from_snapshot(
        cls, root: Path, *, text_channels: int, device: torch.device, dtype: torch.dtype
    ) -> NativeEngine:
        """The engine of a snapshot whose text embeddings have `text_channels` channels.

        Raises ModelError when a part is damaged or is not FLUX.2 [klein]'s.
        """
        dit_config = Flux2Config.from_json(
            part_config(root / "transformer", "_class_name", "Flux2Transformer2DModel")
        )
        vae_config = VaeConfig.from_json(
            part_config(root / "vae", "_class_name", "AutoencoderKLFlux2")
        )
        check_fit(root, dit_config, vae_config, text_channels)
        with without_memory():
            dit, vae = Flux2Transformer(dit_config), VaeDecoder(vae_config)
        load_weights(dit, root / "transformer", device=device, dtype=dtype)
        skipped = load_weights(
            vae,
            root / "vae",
            device=device,
            dtype=dtype,
            unread=lambda name: name.startswith(_ENCODING),
        )
        return cls(dit, vae, dtype, tuple(f"vae.{name}" for name in skipped))

    def transformer(self, latents: Tensor, sigma: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        """The velocity (B, N, C) at a noise level."""
        velocity: Tensor = self._dit(
            latents.to(self._dtype), as_timestep(sigma, self._dtype), text.to(self._dtype), ids
        )
        return velocity

    def decode(self, latents: Tensor) -> Tensor:
        """(1, c, 2h, 2w) latents -> (1, 3, 16h, 16w) pictures, from -1 to 1."""
        picture: Tensor = self._vae(latents.to(self._dtype))
        return picture
