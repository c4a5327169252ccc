"""The official pipeline, `diffusers.Flux2KleinPipeline`, watched while it draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klein_cli.check.metrics import Picture
from klein_cli.errors import ModelError, OutOfMemoryError
from klein_cli.machine import full_precision, is_out_of_memory, torch_dtype
from klein_cli.pipeline import Trace
from klein_cli.recipe import Recipe, Settings


def reference(
    root: Path,
    settings: Settings,
    recipes: Sequence[Recipe],
    on_event: Callable[[str], None],
) -> list[tuple[Trace, Picture]]:
    """What the official pipeline makes of each recipe, one at a time, with our weights and noise.

    The model is gone from the device when this returns. Raises ModelError when diffusers cannot
    load the snapshot, OutOfMemoryError when it does not fit.
    """
    try:
        on_event("loading diffusers' pipeline")
        pipe = _load(root, settings)
        made = []
        for number, recipe in enumerate(recipes, start=1):
            on_event(f"drawing with diffusers: {number} of {len(recipes)}")
            made.append(_draw(pipe, recipe, settings))
        return made
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    raise OutOfMemoryError(
        f"diffusers' pipeline does not fit into the memory of {settings.device}",
        "use a smaller --size, or --device cpu",
    )


def _load(root: Path, settings: Settings) -> Any:
    import diffusers
    import transformers

    for logging in (diffusers.utils.logging, _any(transformers.utils.logging)):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    try:
        pipe = diffusers.Flux2KleinPipeline.from_pretrained(
            root, dtype=torch_dtype(settings.dtype), local_files_only=True
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"diffusers cannot load {root}: {error}", "download the model again"
        ) from None
    # transformers' flash_attention_2 leaves the padded rows without attention.
    pipe.text_encoder.set_attn_implementation("sdpa")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(settings.device)


def _draw(pipe: Any, recipe: Recipe, settings: Settings) -> tuple[Trace, Picture]:
    trace = Trace()

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if not trace.embeddings:
            trace.embeddings.append(_on_host(tensors["prompt_embeds"]))
        trace.latents.append(_on_host(tensors["latents"]))
        return {}

    with torch.inference_mode(), full_precision():
        images = pipe(
            prompt=recipe.prompt,
            width=recipe.width,
            height=recipe.height,
            num_inference_steps=recipe.steps,
            guidance_scale=recipe.guidance,
            latents=_noise(pipe, recipe, settings),
            callback_on_step_end=keep,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        ).images
    return trace, np.asarray(images[0].convert("RGB"))


def _noise(pipe: Any, recipe: Recipe, settings: Settings) -> Tensor:
    """Our noise, drawn apart from our own code: (1, channels, height / 16, width / 16).

    The pipeline's own draw on a CPU is another in half precision before torch 2.13, where it does
    not round the float32 draw.
    """
    on_cpu = settings.rng == "cpu"
    place = torch.device("cpu" if on_cpu else settings.device)
    return torch.randn(
        (1, pipe.transformer.config.in_channels, recipe.height // 16, recipe.width // 16),
        generator=torch.Generator(place).manual_seed(recipe.seed),
        device=place,
        dtype=torch.float32 if on_cpu else torch_dtype(settings.dtype),
    )


def _any(module: Any) -> Any:
    return module


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32, copy=True)
