"""The diffusers engine: the DiT and the VAE as diffusers builds them.

The portable engine, and the one that others are compared to. Importing it costs seconds: import
it late.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from torch import Tensor

from klein_cli.checkpoints.load import Change, init_on_meta
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.checkpoints.source import Checkpoint, config_of
from klein_cli.device.device import Device
from klein_cli.engines.engine import as_timestep, check_fit, one_by_one
from klein_cli.errors import ModelError, UsageError
from klein_cli.optimize.backend import PLAIN
from klein_cli.optimize.part import Part, Target
from klein_cli.sampling.decode import decode_latents
from klein_cli.sampling.encode import encode_image


class Condition(NamedTuple):
    """The text (B, T, D), the positions (T + N + R, 4), and references (B or 1, R, C)."""

    text: Tensor
    ids: Tensor
    references: Tensor | None = None


class DiffusersEngine:
    """See `klein_cli.engines.engine.Engine`."""

    def __init__(
        self,
        parts: dict[str, Part[Any]],
        *,
        latent_channels: int,
        keeps_references: bool,
        device: Device,
        dtype: torch.dtype,
    ) -> None:
        self.parts = parts
        self.latent_channels = latent_channels
        self._keeps_references = keeps_references
        self._device = device
        self._dtype = dtype

    @classmethod
    def load(cls, snapshot: Snapshot, target: Target, *, text_channels: int) -> DiffusersEngine:
        """The engine of a model whose text embeddings have `text_channels` channels.

        The modules are diffusers' own, and so is how they compute: of the target's backend
        they need nothing. Raises ModelError when a part is damaged or is not FLUX.2 [klein]'s.
        """
        sources = {name: snapshot.part(name) for name in ("transformer", "vae")}
        dit = _module(Flux2Transformer2DModel, sources["transformer"])
        vae = _module(AutoencoderKLFlux2, sources["vae"])
        check_fit(snapshot, dit.config, vae.config, text_channels)
        plain = replace(target, backend=PLAIN)
        parts = {
            "transformer": Part.load("transformer", dit, sources["transformer"], plain),
            "vae": Part.load("vae", vae, sources["vae"], plain),
        }
        return cls(
            parts,
            latent_channels=dit.config.in_channels,
            keeps_references=snapshot.preset.kv_cache,
            device=target.device,
            dtype=target.dtype,
        )

    def adapt(self, changes: Mapping[str, Change]) -> None:
        """Put the tensors again that these change, or that others have changed."""
        self.parts["transformer"].reload(changes, self._device)

    def encode(self, image: Tensor) -> Tensor:
        """One image (3, 16h, 16w) from -1 to 1 -> its normalised latents (h * w, C) float32."""
        with self.parts["vae"].ready() as vae:

            def encode(image: Tensor) -> Tensor:
                mean: Tensor = vae.encode(image, return_dict=False)[0].mode()
                return mean

            image = image.to(self._device.torch_device)
            return encode_image(image, _scale(vae), encode, dtype=self._dtype)

    def refer(self, references: Tensor, ids: Tensor) -> Tensor:
        """(1, R, C). Raises UsageError for a model that keeps their keys and values."""
        if self._keeps_references:
            raise UsageError(
                "this model caches its images' keys and values, and the diffusers engine does not",
                "use --engine native",
            )
        return references.to(self._device.torch_device, self._dtype)

    def condition(self, text: Tensor, ids: Tensor, references: Tensor | None = None) -> Condition:
        """What the module is given at every step."""
        return Condition(text.to(self._dtype), ids, references)

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The velocity (B, N, C) at a noise level.

        The module takes sigma and multiplies by 1000 itself; it gets the rounded timestep back.
        """
        timestep = as_timestep(sigma, self._dtype).to(latents.device) / 1000
        words = condition.text.shape[1]

        def velocity(latents: Tensor, text: Tensor, *references: Tensor) -> Tensor:
            behind = [each.expand(len(latents), *each.shape[1:]) for each in references]
            predicted: Tensor = dit(
                hidden_states=torch.cat((latents, *behind), dim=1),
                encoder_hidden_states=text,
                timestep=timestep,
                txt_ids=condition.ids[:words],
                img_ids=condition.ids[words:],
                guidance=None,
                return_dict=False,
            )[0]
            return predicted[:, : latents.shape[1]]

        references = () if condition.references is None else (condition.references,)
        batches = latents.to(self._dtype), condition.text, *references
        with self.parts["transformer"].ready() as dit:
            if self._device.one_by_one:
                return one_by_one(velocity, *batches)
            return velocity(*batches)

    def decode(self, latents: Tensor, grid: tuple[int, int], *, tiled: bool = False) -> Tensor:
        """One image's latents (h * w, C) float32 -> (3, 16h, 16w), from -1 to 1."""
        with self.parts["vae"].ready() as vae:

            def decode(latents: Tensor) -> Tensor:
                image: Tensor = vae.decode(latents, return_dict=False)[0]
                return image

            return decode_latents(
                latents, grid, _scale(vae), decode, dtype=self._dtype, tiled=tiled
            )


def _scale(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents."""
    return vae.bn.running_mean, torch.sqrt(vae.bn.running_var + vae.bn.eps)


def _module(kind: Any, checkpoint: Checkpoint) -> Any:
    """A module from its configuration, without memory, network or code of the model's own."""
    config = config_of(checkpoint, "_class_name", kind.__name__)
    try:
        with init_on_meta():
            return kind.from_config(config)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"the configuration of {checkpoint.place} is not that of a {kind.__name__}: {error}",
            "download the model again",
        ) from None
