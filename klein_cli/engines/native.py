"""The native engine: our own DiT and VAE decoder, importing neither diffusers nor transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from klein_cli.checkpoints.load import init_on_meta
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.checkpoints.source import config_of
from klein_cli.device.device import Device
from klein_cli.engines.engine import as_timestep, check_fit, one_by_one
from klein_cli.models.flux2 import Flux2Config, Flux2Transformer, Rotary
from klein_cli.models.vae import VaeConfig, VaeDecoder, latent_scale
from klein_cli.optimize.part import Part, Target
from klein_cli.sampling.decode import decode_latents

_ENCODING = ("encoder.", "quant_conv.")
_KEPT_TIMESTEPS = 64
"""Of these a base model has 50 an image, each 100 KB at the true sizes."""


class Condition(NamedTuple):
    """The embedded text (B, T, width) and the rotary angles of text and latents."""

    text: Tensor
    rotary: Rotary


class NativeEngine:
    """See `klein_cli.engines.engine.Engine`.

    The modulations of a timestep are the same in every image, and computed once for all.
    """

    def __init__(
        self,
        transformer: Part[Flux2Transformer],
        vae: Part[VaeDecoder],
        *,
        latent_channels: int,
        device: Device,
        dtype: torch.dtype,
    ) -> None:
        self.parts = {"transformer": transformer, "vae": vae}
        self.latent_channels = latent_channels
        self._transformer = transformer
        self._vae = vae
        self._device = device
        self._dtype = dtype
        self._modulations: dict[float, Tensor] = {}

    @classmethod
    def load(cls, snapshot: Snapshot, target: Target, *, text_channels: int) -> NativeEngine:
        """The engine of a model whose text embeddings have `text_channels` channels.

        Raises ModelError when a part is damaged or is not FLUX.2 [klein]'s.
        """
        sources = {name: snapshot.part(name) for name in ("transformer", "vae")}
        dit_config = Flux2Config.from_json(
            config_of(sources["transformer"], "_class_name", "Flux2Transformer2DModel")
        )
        vae_config = VaeConfig.from_json(
            config_of(sources["vae"], "_class_name", "AutoencoderKLFlux2")
        )
        check_fit(snapshot, dit_config, vae_config, text_channels)
        with init_on_meta():
            dit = Flux2Transformer(dit_config, target.backend.flux2)
            vae = VaeDecoder(vae_config, target.backend.vae)
        return cls(
            Part.load("transformer", dit, sources["transformer"], target),
            Part.load(
                "vae",
                vae,
                sources["vae"],
                target,
                skip=lambda name: name.startswith(_ENCODING),
            ),
            latent_channels=dit_config.in_channels,
            device=target.device,
            dtype=target.dtype,
        )

    def condition(self, text: Tensor, ids: Tensor) -> Condition:
        """The text, embedded, and the angles of all positions."""
        with self._transformer.ready() as dit:
            embedded = self._for_each(dit.context_embedder, text.to(self._dtype))
            place = "cpu" if self._device.rope_on_host else ids.device
            cosine, sine = dit.rotary(ids.to(place))
            return Condition(embedded, (cosine.to(ids.device), sine.to(ids.device)))

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The velocity (B, N, C) at a noise level."""
        with self._transformer.ready() as dit:
            modulations = self._modulated_by(dit, sigma)

            def velocity(latents: Tensor, text: Tensor) -> Tensor:
                given = latents, text, modulations, *condition.rotary
                return self._transformer.run(dit.velocity, *given)

            return self._for_each(velocity, latents.to(self._dtype), condition.text)

    def decode(self, latents: Tensor, grid: tuple[int, int], *, tiled: bool = False) -> Tensor:
        """One image's latents (h * w, C) float32 -> (3, 16h, 16w), from -1 to 1."""
        with self._vae.ready() as vae:
            decode = partial(self._vae.run, vae)
            return decode_latents(
                latents, grid, latent_scale(vae.bn), decode, dtype=self._dtype, tiled=tiled
            )

    def _for_each(self, function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
        if self._device.one_by_one:
            return one_by_one(function, *batches)
        return function(*batches)

    def _modulated_by(self, dit: Flux2Transformer, sigma: Tensor) -> Tensor:
        level = float(sigma)
        known = self._modulations.pop(level, None)
        if known is None:
            known = dit.modulations(as_timestep(sigma, self._dtype).to(self._device.torch_device))
        self._modulations[level] = known
        if len(self._modulations) > _KEPT_TIMESTEPS:
            del self._modulations[next(iter(self._modulations))]
        return known
