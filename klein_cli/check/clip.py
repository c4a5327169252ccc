"""How alike two images are to CLIP, from a CLIP model on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from klein_cli.check.metrics import Pixels
from klein_cli.errors import ModelError


def clip_likeness(folder: Path) -> Callable[[Pixels, Pixels], float]:
    """The cosine of two images' image embeddings by the CLIP model in `folder`, on the CPU.

    `folder` is in transformers' layout; sglang's limits are for openai/clip-vit-large-patch14.
    Raises ModelError when there is no such model.
    """
    import transformers

    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    try:
        processor = library.CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        model = library.CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"there is no CLIP model in {folder}: {error}",
            "download openai/clip-vit-large-patch14 into a folder, or leave --clip out",
        ) from None

    def likeness(found: Pixels, wanted: Pixels) -> float:
        images = [Image.fromarray(found), Image.fromarray(wanted)]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            pooled = model.vision_model(pixel_values=pixels).pooler_output
            both = model.visual_projection(pooled)
        return float(torch.cosine_similarity(both[0], both[1], dim=0))

    return likeness
