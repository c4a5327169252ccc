"""The native engine: our own DiT and VAE, importing neither diffusers nor transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from klein_cli.checkpoints.load import Change, init_on_meta
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.checkpoints.source import Checkpoint, config_of
from klein_cli.device.device import Device
from klein_cli.device.memory import check_room
from klein_cli.engines.engine import as_timestep, check_fit, one_by_one
from klein_cli.errors import ModelError
from klein_cli.models.flux2 import Flux2Config, Flux2Transformer, Rotary
from klein_cli.models.vae import VaeConfig, VaeDecoder, latent_scale
from klein_cli.models.vae_encoder import VaeEncoder
from klein_cli.optimize.part import Part, Target
from klein_cli.sampling.decode import decode_latents
from klein_cli.sampling.encode import encode_image

_ENCODING = ("encoder.", "quant_conv.")
_DECODING = ("decoder.", "post_quant_conv.")
_KEPT_TIMESTEPS = 64
"""Of these a base model has 50 an image, each 100 KB at the true sizes."""


class Condition(NamedTuple):
    """The embedded text (B, T, width), what `refer` left of references (B or 1, ...), and the
    rotary angles of all that the DiT is given: text, latents, and references unless they are kept.
    """

    text: Tensor
    rotary: Rotary
    references: Tensor | None = None


class NativeEngine:
    """See `klein_cli.engines.engine.Engine`.

    The modulations of a timestep are the same in every image, and computed once for all.
    """

    def __init__(
        self,
        transformer: Part[Flux2Transformer],
        vae: Part[VaeDecoder],
        load_encoder: Callable[[], Part[VaeEncoder]],
        *,
        latent_channels: int,
        keeps_references: bool,
        device: Device,
        dtype: torch.dtype,
    ) -> None:
        self.parts: dict[str, Part[Any]] = {"transformer": transformer, "vae": vae}
        self.latent_channels = latent_channels
        self._transformer = transformer
        self._vae = vae
        self._load_encoder = load_encoder
        self._keeps_references = keeps_references
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

        def load_encoder() -> Part[VaeEncoder]:
            return _encoder(vae_config, sources["vae"], replace(target, reader=None, changes={}))

        return cls(
            Part.load("transformer", dit, sources["transformer"], target),
            Part.load(
                "vae",
                vae,
                sources["vae"],
                target,
                skip=lambda name: name.startswith(_ENCODING),
            ),
            load_encoder,
            keeps_references=snapshot.preset.kv_cache,
            latent_channels=dit_config.in_channels,
            device=target.device,
            dtype=target.dtype,
        )

    @cached_property
    def _encoder(self) -> Part[VaeEncoder]:
        return self._load_encoder()

    def adapt(self, changes: Mapping[str, Change]) -> None:
        """Put the tensors again that these change, or that others have changed."""
        self._modulations.clear()
        self._transformer.reload(changes, self._device)

    def encode(self, image: Tensor) -> Tensor:
        """One image (3, 16h, 16w) from -1 to 1 -> its normalised latents (h * w, C) float32.

        The first one waits for the encoder's weights, which nothing else needs.
        """
        with self._encoder.ready() as vae:
            image = image.to(self._device.torch_device)
            return encode_image(image, latent_scale(vae.bn), vae, dtype=self._dtype)

    def refer(self, references: Tensor, ids: Tensor) -> Tensor:
        """(1, R, C), or (1, blocks, 2, R, heads, head size) of a model that keeps references."""
        references = references.to(self._device.torch_device, self._dtype)
        if not self._keeps_references:
            return references
        with self._transformer.ready() as dit:
            what = f"the keys and values of {references.shape[1]} tokens of references"
            check_room(dit.kept_bytes(references), references.device, what)
            now = self._modulated_by(dit, torch.zeros(1))
            return dit.reference_keys(references, now, *self._rotary(dit, ids))

    def condition(self, text: Tensor, ids: Tensor, references: Tensor | None = None) -> Condition:
        """The text, embedded, and the angles of all positions."""
        with self._transformer.ready() as dit:
            embedded = self._for_each(dit.context_embedder, text.to(self._dtype))
            if self._keeps_references and references is not None:
                ids = ids[: -references.shape[3]]
            return Condition(embedded, self._rotary(dit, ids), references)

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The velocity (B, N, C) at a noise level."""
        with self._transformer.ready() as dit:
            modulations = self._modulated_by(dit, sigma)
            references = () if condition.references is None else (condition.references,)
            kept = self._keeps_references and references
            function = dit.velocity_beside if kept else dit.velocity

            def velocity(latents: Tensor, text: Tensor, *references: Tensor) -> Tensor:
                given = latents, text, modulations, *condition.rotary, *references
                return self._transformer.run(function, *given)

            return self._for_each(velocity, latents.to(self._dtype), condition.text, *references)

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

    def _rotary(self, dit: Flux2Transformer, ids: Tensor) -> Rotary:
        place = "cpu" if self._device.rope_on_host else ids.device
        cosine, sine = dit.rotary(ids.to(place))
        return cosine.to(ids.device), sine.to(ids.device)

    def _modulated_by(self, dit: Flux2Transformer, sigma: Tensor) -> Tensor:
        level = float(sigma)
        known = self._modulations.pop(level, None)
        if known is None:
            known = dit.modulations(as_timestep(sigma, self._dtype).to(self._device.torch_device))
        self._modulations[level] = known
        if len(self._modulations) > _KEPT_TIMESTEPS:
            del self._modulations[next(iter(self._modulations))]
        return known


def _encoder(config: VaeConfig, checkpoint: Checkpoint, target: Target) -> Part[VaeEncoder]:
    """The VAE's other half, read now. Raises ModelError also where the file holds none."""
    if not any(name.startswith(_ENCODING) for name in checkpoint.tensors()):
        raise ModelError(
            f"{checkpoint.place} has no encoder: it cannot read images",
            "use a VAE with an encoder to edit images",
        )
    with init_on_meta():
        vae = VaeEncoder(config, target.backend.vae)
    return Part.load("vae", vae, checkpoint, target, skip=lambda name: name.startswith(_DECODING))
