"""The native engine: our own DiT and VAE decoder, importing neither diffusers nor transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from klein_cli.checkpoints.load import Loading, load_weights, part_config, without_memory
from klein_cli.checkpoints.reader import Reader
from klein_cli.engines.engine import as_timestep, check_fit, picture_by_picture
from klein_cli.models.flux2 import Flux2Config, Flux2Transformer
from klein_cli.models.vae import VaeConfig, VaeDecoder, latent_scale
from klein_cli.optimize.backend import PLAIN, Tools

_ENCODING = ("encoder.", "quant_conv.")
_KEPT_TIMESTEPS = 64
"""Of these a base model has 50 a picture, each 100 KB at the true sizes."""

Made = TypeVar("Made")


class NativeEngine:
    """See `klein_cli.engines.engine.Engine`.

    What does not change between steps is computed once: the embedded text and the rotary angles
    for a picture, the modulations of a timestep for all pictures.
    """

    name = "native"

    def __init__(
        self,
        dit: Flux2Transformer,
        vae: VaeDecoder,
        *,
        device: torch.device,
        dtype: torch.dtype,
        tools: Tools,
        loadings: dict[str, Loading],
    ) -> None:
        self._dit = dit
        self._vae = vae
        self._device = device
        self._dtype = dtype
        self._run = tools.run
        self.loadings = loadings
        self.skipped = tuple(f"vae.{name}" for name in loadings["vae"].skipped)
        self.latent_channels = dit.config.in_channels
        self._words = _Lately(self._embed, most=2)
        self._rotary = _Lately(dit.rotary, most=1)
        self._modulations: dict[float, Tensor] = {}

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
            dit = Flux2Transformer(dit_config, tools.flux2)
            vae = VaeDecoder(vae_config, tools.vae)
        load = partial(load_weights, device=device, dtype=dtype, reader=reader, then=tools.prepare)
        loadings = {
            "transformer": load(dit, root / "transformer"),
            "vae": load(vae, root / "vae", unread=lambda name: name.startswith(_ENCODING)),
        }
        return cls(dit, vae, device=device, dtype=dtype, tools=tools, loadings=loadings)

    @cached_property
    def latent_mean(self) -> Tensor:
        """(channels,) float32."""
        return self._latent_scale[0]

    @cached_property
    def latent_deviation(self) -> Tensor:
        """(channels,) float32."""
        return self._latent_scale[1]

    @property
    def _latent_scale(self) -> tuple[Tensor, Tensor]:
        self.loadings["vae"].wait()
        return latent_scale(self._vae.bn)

    def transformer(self, latents: Tensor, sigma: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        """The velocity (B, N, C) at a noise level."""
        self.loadings["transformer"].wait()
        modulations, rotary = self._modulated_by(sigma), self._rotary(ids)

        def velocity(latents: Tensor, words: Tensor) -> Tensor:
            return self._run(self._dit.velocity, latents, words, modulations, *rotary)

        return self._for_each(velocity, latents.to(self._dtype), self._words(text))

    def forget(self) -> None:
        """Let go of the last pictures' words and angles."""
        self._words.clear()
        self._rotary.clear()

    def _embed(self, text: Tensor) -> Tensor:
        return self._for_each(self._dit.context_embedder, text.to(self._dtype))

    def _for_each(self, function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return picture_by_picture(function, *batches)
        return function(*batches)

    def decode(self, latents: Tensor) -> Tensor:
        """(1, c, 2h, 2w) latents -> (1, 3, 16h, 16w) pictures, from -1 to 1."""
        self.loadings["vae"].wait()
        return self._run(self._vae, latents.to(self._dtype))

    def _modulated_by(self, sigma: Tensor) -> Tensor:
        level = float(sigma)
        known = self._modulations.pop(level, None)
        if known is None:
            known = self._dit.modulations(as_timestep(sigma, self._dtype).to(self._device))
        self._modulations[level] = known
        if len(self._modulations) > _KEPT_TIMESTEPS:
            del self._modulations[next(iter(self._modulations))]
        return known


class _Lately(Generic[Made]):
    """A function of one tensor that remembers its last results.

    By the object itself: comparing values would wait for the device. Nobody changes the tensor.
    """

    def __init__(self, function: Callable[[Tensor], Made], most: int) -> None:
        self._function = function
        self._most = most
        self._known: list[tuple[Tensor, Made]] = []

    def clear(self) -> None:
        self._known = []

    def __call__(self, given: Tensor) -> Made:
        for tensor, made in self._known:
            if tensor is given:
                return made
        self._known = [*self._known, (given, self._function(given))][-self._most :]
        return self._known[-1][1]
