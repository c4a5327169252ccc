"""The official pipelines of diffusers, watched while they draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from klein_cli.check.metrics import Pixels
from klein_cli.device.choose import no_tf32
from klein_cli.device.memory import is_out_of_memory
from klein_cli.engines.oracle import draw, load_official, noise_for
from klein_cli.errors import OutOfMemoryError
from klein_cli.images.store import ImageStore
from klein_cli.pipeline import Trace
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings


def reference(
    root: Path,
    settings: Settings,
    recipes: Sequence[Recipe],
    on_event: Callable[[str], None],
    *,
    images: ImageStore | None = None,
    kv_cache: bool = False,
    adapt: Callable[[nn.Module], None] = lambda transformer: None,
) -> list[tuple[Trace, Pixels]]:
    """What the official pipeline makes of each recipe, one at a time, with our weights and noise.

    `images` are those that the recipes name, `kv_cache` is as in the model's preset; `adapt`
    changes the transformer's weights before anything is drawn. The model is gone from the device
    when this returns. Raises ModelError when diffusers cannot load the snapshot, OutOfMemoryError
    when it does not fit.
    """
    try:
        on_event("loading diffusers' pipeline")
        pipe = load_official(root, settings, kv_cache=kv_cache)
        adapt(pipe.transformer)
        made = []
        for number, recipe in enumerate(recipes, start=1):
            on_event(f"drawing with diffusers: {number} of {len(recipes)}")
            made.append(_draw(pipe, recipe, settings, images))
        return made
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    raise OutOfMemoryError(
        f"diffusers' pipeline does not fit into the memory of {settings.device}",
        "use a smaller --size, or --device cpu",
    )


def _draw(
    pipe: Any, recipe: Recipe, settings: Settings, images: ImageStore | None
) -> tuple[Trace, Pixels]:
    trace = Trace()

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if not trace.embeddings:
            trace.embeddings.append(_on_host(tensors["prompt_embeds"]))
        trace.latents.append(_on_host(tensors["latents"]))
        return {}

    with torch.inference_mode(), no_tf32():
        image = draw(
            pipe,
            recipe,
            images,
            latents=noise_for(pipe, recipe, settings),
            callback_on_step_end=keep,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )
    return trace, np.asarray(image.convert("RGB"))


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32, copy=True)
