"""The peers: diffusers' pipeline as it comes, and as its own documentation says to tune it.

Both have the weights that klein has and run as a user would run them, under no mode but their own.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from klein_cli.bench.measure import Memory, now
from klein_cli.device.device import device_for
from klein_cli.engines.oracle import draw, load_official, noise_for
from klein_cli.images.store import ImageStore
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings

PLAIN = "diffusers"
TUNED = "diffusers, tuned"

_COMPILED_SHAPES = 64


class Diffusers:
    """A `Flux2KleinPipeline`; see `klein_cli.bench.contender.Contender`."""

    def __init__(
        self,
        name: str,
        pipe: Any,
        settings: Settings,
        memory: Memory,
        images: ImageStore | None = None,
    ) -> None:
        self.name = name
        self._images = images
        self.memory = memory
        self._pipe = pipe
        self._settings = settings

    def draw(self, recipe: Recipe) -> Image.Image:
        """With the noise drawn on the pipeline's device, which is its quickest way."""
        return self._draw(recipe, **self._own_noise(recipe))

    def draw_as_klein(self, recipe: Recipe) -> Image.Image:
        """With the noise that klein takes, for comparing the two images."""
        return self._draw(recipe, latents=noise_for(self._pipe, recipe, self._settings))

    def stages(self, recipe: Recipe) -> dict[str, float]:
        """See Contender. Encoding is the pipeline's `encode_prompt`, and `prepare_image_latents`
        where there are references; decoding begins after the last step and ends with the PIL image.
        """
        device = torch.device(self._settings.device)
        encoded: list[float] = []
        stepped: list[float] = []

        def on_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == recipe.steps - 1:
                stepped.append(now(device))
            return {}

        with (
            _timed(self._pipe, "encode_prompt", device, encoded),
            _timed(self._pipe, "prepare_image_latents", device, encoded),
        ):
            self._draw(recipe, callback_on_step_end=on_step, **self._own_noise(recipe))
            ended = now(device)
        starts, ends = encoded[::2], encoded[1::2]
        return {
            "encode": sum(ends) - sum(starts),
            "denoise": stepped[0] - ends[-1],
            "decode": ended - stepped[0],
        }

    def png(self, image: Image.Image, recipe: Recipe) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def _own_noise(self, recipe: Recipe) -> dict[str, torch.Generator]:
        return {"generator": torch.Generator(self._settings.device).manual_seed(recipe.seed)}

    def _draw(self, recipe: Recipe, **options: Any) -> Image.Image:
        return draw(self._pipe, recipe, self._images, **options)


def load_peers(
    root: Path,
    settings: Settings,
    *,
    compile_vae: bool,
    images: ImageStore | None = None,
    kv_cache: bool = False,
    on_event: Callable[[str], None],
) -> list[Diffusers]:
    """diffusers as it comes and, on a GPU, tuned. The two share one text encoder.

    `images` are those that recipes will name, `kv_cache` is as in the model's preset. Raises
    ModelError when diffusers cannot load the snapshot.
    """
    device = torch.device(settings.device)
    on_event("loading diffusers' pipeline")
    memory = Memory(device)
    with memory.watch():
        plain = load_official(root, settings, kv_cache=kv_cache)
    peers = [Diffusers(PLAIN, plain, settings, memory, images)]
    if device_for(device).triton:
        on_event("tuning a second pipeline")
        memory = Memory(device)
        with memory.watch():
            tuned = tune(plain, cudnn=settings.dtype != "float32", compile_vae=compile_vae)
        memory.share(sum(weight.nbytes for weight in plain.text_encoder.parameters()))
        peers.append(Diffusers(TUNED, tuned, settings, memory, images))
    return peers


def tune(pipe: Any, *, cudnn: bool, compile_vae: bool, backend: str = "inductor") -> Any:
    """A second pipeline, sharing tokenizer and text encoder with `pipe`, whose transformer and VAE
    are tuned: cuDNN attention, fused projections, repeated blocks compiled for each shape, and a
    VAE in channels_last, compiled if asked for. `pipe` stays as it was.
    """
    import torch._dynamo

    transformer, vae = copy.deepcopy(pipe.transformer), copy.deepcopy(pipe.vae)
    transformer.fuse_qkv_projections()
    if cudnn:
        transformer.set_attention_backend("_native_cudnn")
        # That also changed what every other transformer takes: let the plain one say its own.
        pipe.transformer.set_attention_backend("native")
    # Every block of a kind shares its code, and each shape is compiled for itself.
    torch._dynamo.config.recompile_limit = _COMPILED_SHAPES
    transformer.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=backend)
    vae.to(memory_format=torch.channels_last)
    if compile_vae:
        vae.decoder.compile(dynamic=False, backend=backend)
    parts = {**pipe.components, "transformer": transformer, "vae": vae}
    tuned = type(pipe)(**parts, is_distilled=pipe.config.is_distilled)
    tuned.set_progress_bar_config(disable=True)
    return tuned


@contextmanager
def _timed(pipe: Any, method: str, device: torch.device, moments: list[float]) -> Iterator[None]:
    """Note when each call of a method of one object starts and ends."""
    called = getattr(pipe, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        moments.append(now(device))
        result = called(*args, **kwargs)
        moments.append(now(device))
        return result

    setattr(pipe, method, call)
    try:
        yield
    finally:
        delattr(pipe, method)
