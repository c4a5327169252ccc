"""The official pipeline, `diffusers.Flux2KleinPipeline`: what ours is checked and timed against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from klein_cli.device.choose import torch_dtype
from klein_cli.errors import ModelError
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings


def load_official(root: Path, settings: Settings) -> Any:
    """The pipeline of the snapshot in `root`, quiet, on the settings' device in their dtype.

    Raises ModelError when diffusers cannot load it.
    """
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


def noise_for(pipe: Any, recipe: Recipe, settings: Settings) -> Tensor:
    """Klein's noise for the pipeline's `latents`: (1, channels, height / 16, width / 16).

    Drawn apart from klein's own code. The pipeline's own draw on a CPU is another in half precision
    before torch 2.13, where it is not the float32 draw rounded.
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
