"""The official pipeline, `diffusers.Flux2KleinPipeline`: what ours is checked and timed against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from klein_cli.errors import ModelError
from klein_cli.machine import torch_dtype
from klein_cli.recipe import Settings


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


def _any(module: Any) -> Any:
    return module
