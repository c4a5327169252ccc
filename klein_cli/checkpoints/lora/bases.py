"""Which model an adapter was trained for, by its layers' names and sizes and by its header.

The sizes are those of the models as they were published: a small model of the same make is none of
them, and an adapter for it is judged by its sizes alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from klein_cli.checkpoints.lora.layers import Layer
from klein_cli.checkpoints.lora.targets import block_of

FAMILY = "FLUX.2 [klein]"
KLEIN_4B, KLEIN_9B = f"{FAMILY} 4B", f"{FAMILY} 9B"
FLUX1, DEV = "FLUX.1", "FLUX.2 [dev]"

_WIDTHS = {3072: KLEIN_4B, 4096: KLEIN_9B, 6144: DEV}
_TEXT_WIDTHS = {7680: KLEIN_4B, 12288: KLEIN_9B, 15360: DEV, 4096: FLUX1}
_BLOCKS_4B = {"transformer_blocks": 5, "single_transformer_blocks": 20}
"""FLUX.1 has the width of klein's 4B, its names too, and more blocks."""

_FLUX1_LAYERS = re.compile(
    r"double_blocks_\d+_(?:img|txt)_mod_lin|single_blocks_\d+_modulation_lin|vector_in_\w+"
    r"|transformer_blocks_\d+_norm1(?:_context)?_linear|time_text_embed_\w+"
    r"|single_transformer_blocks_\d+_(?:proj_mlp|proj_out|norm_linear|attn_to_[qkv])"
)
_DEV_LAYERS = re.compile(r"guidance_in_\w+|time_guidance_embed_guidance_embedder_\w+")
_OF_THE_WIDTH = re.compile(
    r"\.(?:to_[qkv]|add_[qkv]_proj|to_add_out|to_out\.0|linear_in|to_qkv_mlp_proj)$"
    r"|_modulation(?:_img|_txt)?\.linear$|^norm_out\.linear$|^proj_out$|\.linear_2$"
)
"""Modules with as many columns as the model is wide."""

_IN_FLUX1 = {
    "ff.linear_in": (4, 1),
    "ff_context.linear_in": (4, 1),
    "ff.linear_out": (1, 4),
    "ff_context.linear_out": (1, 4),
    "attn.to_qkv_mlp_proj": (7, 1),
    "attn.to_out": (1, 5),
}
"""Rows and columns of FLUX.1's layers in widths, where FLUX.2's have others."""

_WRITTEN = {
    FLUX1: re.compile(r"flux[._-]?1|flux[._-](?:dev|schnell)\b"),
    KLEIN_4B: re.compile(r"klein[\w .-]*4b"),
    KLEIN_9B: re.compile(r"klein[\w .-]*9b"),
    DEV: re.compile(r"flux[._-]?2[._-]dev"),
}
_WRITTEN_IN = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name", "base_model")


class Base(NamedTuple):
    """A model's `name`, None where klein knows none; `certain` if nothing else fits."""

    name: str | None
    certain: bool = True


def base_by_name(path: str) -> str | None:
    """The model that has a layer of this name which klein's models have not, or None."""
    name = path.replace(".", "_")
    if _FLUX1_LAYERS.fullmatch(name):
        return FLUX1
    return DEV if _DEV_LAYERS.fullmatch(name) else None


def base_of(layers: Iterable[Layer], metadata: Mapping[str, Any]) -> Base:
    """The model that layers of these names and sizes belong to."""
    layers = list(layers)
    by_size = [found for layer in layers if (found := _by_size(layer))]
    if FLUX1 in by_size:
        return Base(FLUX1)
    named = by_size[0] if by_size else None
    if named != KLEIN_4B:
        return Base(named)
    if any(_is_beyond_4b(layer) for layer in layers):
        return Base(FLUX1)
    if any(_has_its_own_size(layer) for layer in layers):
        return Base(KLEIN_4B)
    written = base_written(metadata)
    return Base(FLUX1 if written == FLUX1 else KLEIN_4B, certain=written is not None)


def base_written(metadata: Mapping[str, Any]) -> str | None:
    """The model that a file's header names, if it is one of those known here."""
    for key in _WRITTEN_IN:
        text = str(metadata.get(key, ""))[:1000].lower()
        for name, form in _WRITTEN.items():
            if form.search(text):
                return name
    return None


def _by_size(layer: Layer) -> str | None:
    shape, module = layer.shape, layer.target.modules[0]
    if len(shape) != 2 or layer.target.share is not None:
        return None
    if module == "context_embedder":
        return _TEXT_WIDTHS.get(shape[1])
    if _has_sizes_of_flux1(module, shape):
        return FLUX1
    return _WIDTHS.get(shape[1]) if _OF_THE_WIDTH.search(module) else None


def _has_sizes_of_flux1(module: str, shape: tuple[int, ...]) -> bool:
    wanted = _IN_FLUX1.get(_within_block(module))
    return wanted is not None and shape[0] * wanted[1] == shape[1] * wanted[0]


def _is_beyond_4b(layer: Layer) -> bool:
    place = block_of(layer.target.modules[0])
    return place is not None and place[1] >= _BLOCKS_4B[place[0]]


def _has_its_own_size(layer: Layer) -> bool:
    """Whether FLUX.1 has no such layer, or another size of it."""
    module = layer.target.modules[0]
    return "modulation" in module or _within_block(module) in _IN_FLUX1


def _within_block(module: str) -> str:
    return module.split(".", 2)[2] if block_of(module) else module
