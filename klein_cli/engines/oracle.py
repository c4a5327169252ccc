"""The official pipelines, diffusers' `Flux2KleinPipeline` and its kin: what ours is checked and
timed against.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from klein_cli.device.choose import torch_dtype
from klein_cli.errors import ModelError
from klein_cli.images.store import ImageStore
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings


def load_official(root: Path, settings: Settings, *, kv_cache: bool = False) -> Any:
    """The pipeline of the snapshot in `root`, quiet, on the settings' device in their dtype.

    `kv_cache` is as in the model's preset: it is another pipeline that keeps references. Raises
    ModelError when diffusers cannot load it.
    """
    import diffusers
    import transformers

    for logging in (diffusers.utils.logging, _any(transformers.utils.logging)):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    kind = diffusers.Flux2KleinKVPipeline if kv_cache else diffusers.Flux2KleinPipeline
    try:
        pipe = kind.from_pretrained(root, dtype=torch_dtype(settings.dtype), local_files_only=True)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"diffusers cannot load {root}: {error}", "download the model again"
        ) from None
    # transformers' flash_attention_2 leaves the padded rows without attention.
    pipe.text_encoder.set_attn_implementation("sdpa")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(settings.device)


def draw(pipe: Any, recipe: Recipe, images: ImageStore | None = None, **more: Any) -> Image.Image:
    """What the pipelines of these weights make of a recipe: the loaded one, or with a mask the
    one that paints. `images` are those that the recipe names; `more` are options of theirs.
    """
    options: dict[str, Any] = {"prompt": recipe.prompt, "num_inference_steps": recipe.steps, **more}
    if hasattr(pipe, "do_classifier_free_guidance"):
        options["guidance_scale"] = recipe.guidance
    given = [_opened(images, each.sha256) for each in recipe.references if images is not None]
    if recipe.mask is None:
        options |= {"width": recipe.width, "height": recipe.height, "image": given or None}
    else:
        assert images is not None
        assert recipe.mask.sha256 is not None
        options |= {"image": given[0], "mask_image": _opened(images, recipe.mask.sha256)}
        options |= {"image_reference": given[1] if given[1:] else None, "strength": 1.0}
        pipe = _painting(pipe)
    image: Image.Image = pipe(**options).images[0]
    return image


def _opened(images: ImageStore, sha256: str) -> Image.Image:
    source = images.source(sha256)
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _painting(pipe: Any) -> Any:
    """The pipeline for masks, of the parts of another."""
    from diffusers import Flux2KleinInpaintPipeline

    painting = Flux2KleinInpaintPipeline(**pipe.components, is_distilled=pipe.config.is_distilled)
    painting.set_progress_bar_config(disable=True)
    return painting


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
