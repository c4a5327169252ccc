"""What a layer is called in an adapter -> the layers of the model whose weights it changes.

Names come in two layouts, FLUX.2's own and that of diffusers, with dots or with underscores, which
cannot be told from those within a name: so they are looked up, in underscores, in the closed list
of all layers.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Target(NamedTuple):
    """The modules whose rows, one below the other, an adapter's layer changes.

    `swapped`: the file has the two halves of the rows in the other order. `share` (first, last, of)
    is the part of the rows that is meant, from first / of to last / of.
    """

    modules: tuple[str, ...]
    swapped: bool = False
    share: tuple[int, int, int] | None = None


_INDEX = re.compile(r"(?<=blocks_)(0|[1-9][0-9]{0,3})(?=_)")

_BLOCK = "transformer_blocks.N"
_SINGLE = "single_transformer_blocks.N"
_IMAGE = tuple(f"{_BLOCK}.attn.{name}" for name in ("to_q", "to_k", "to_v"))
_TEXT = tuple(f"{_BLOCK}.attn.add_{name}_proj" for name in "qkv")
_TIME = "time_guidance_embed.timestep_embedder"

_COPIED = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": f"{_TIME}.linear_1",
    "time_in.out_layer": f"{_TIME}.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "double_blocks.N.img_attn.proj": f"{_BLOCK}.attn.to_out.0",
    "double_blocks.N.txt_attn.proj": f"{_BLOCK}.attn.to_add_out",
    "double_blocks.N.img_mlp.0": f"{_BLOCK}.ff.linear_in",
    "double_blocks.N.img_mlp.2": f"{_BLOCK}.ff.linear_out",
    "double_blocks.N.txt_mlp.0": f"{_BLOCK}.ff_context.linear_in",
    "double_blocks.N.txt_mlp.2": f"{_BLOCK}.ff_context.linear_out",
    "double_blocks.N.img_attn.norm.query_norm": f"{_BLOCK}.attn.norm_q",
    "double_blocks.N.img_attn.norm.key_norm": f"{_BLOCK}.attn.norm_k",
    "double_blocks.N.txt_attn.norm.query_norm": f"{_BLOCK}.attn.norm_added_q",
    "double_blocks.N.txt_attn.norm.key_norm": f"{_BLOCK}.attn.norm_added_k",
    "single_blocks.N.linear1": f"{_SINGLE}.attn.to_qkv_mlp_proj",
    "single_blocks.N.linear2": f"{_SINGLE}.attn.to_out",
    "single_blocks.N.norm.query_norm": f"{_SINGLE}.attn.norm_q",
    "single_blocks.N.norm.key_norm": f"{_SINGLE}.attn.norm_k",
    "final_layer.linear": "proj_out",
}
"""FLUX.2's own names of the layers that are the same in both layouts."""

_STACKED = {
    "double_blocks.N.img_attn.qkv": _IMAGE,
    "double_blocks.N.txt_attn.qkv": _TEXT,
    f"{_BLOCK}.attn.to_qkv": _IMAGE,
    f"{_BLOCK}.attn.to_added_qkv": _TEXT,
}
"""Layers that are one where the official layout has three."""

_SHARES = ((0, 1, 9), (1, 2, 9), (2, 3, 9), (3, 9, 9))
"""Queries, keys, values and feed-forward in the rows of a single block's first layer."""


def target_of(path: str) -> Target | None:
    """The layer called `path`, which has lost its prefix; None when no FLUX.2 model has it."""
    name = path.replace(".", "_")
    found = _INDEX.search(name)
    if found is not None:
        name = name[: found.start()] + "N" + name[found.end() :]
    known = _LAYERS.get(name)
    if known is None or ("blocks.N." in known.modules[0]) != (found is not None):
        return None
    if found is None:
        return known
    return known._replace(modules=tuple(m.replace("N", found[0], 1) for m in known.modules))


def block_of(module: str) -> tuple[str, int] | None:
    """The list of blocks that a module is in, and its place there; None outside the blocks."""
    parts = module.split(".")
    return (parts[0], int(parts[1])) if parts[0].endswith("blocks") else None


def _layers() -> dict[str, Target]:
    layers = {name: Target((module,)) for name, module in _COPIED.items()}
    layers |= {module: Target((module,)) for module in _COPIED.values()}
    layers |= {name: Target(modules) for name, modules in _STACKED.items()}
    for modules in (_IMAGE, _TEXT):
        layers |= {module: Target((module,)) for module in modules}
    # FLUX.2's own layout has shift before scale.
    layers["final_layer.adaLN_modulation.1"] = Target(("norm_out.linear",), swapped=True)
    layers["norm_out.linear"] = Target(("norm_out.linear",))
    for name in ("linear_1", "linear_2"):
        layers[f"time_guidance_embed.{name}"] = Target((f"{_TIME}.{name}",))
    # One trainer once wrote the parts of fused layers one by one.
    for stacked in ("double_blocks.N.img_attn.qkv", "double_blocks.N.txt_attn.qkv"):
        for place, module in enumerate(_STACKED[stacked]):
            layers[f"{stacked}.{place}"] = Target((module,))
    for place, share in enumerate(_SHARES):
        module = _COPIED["single_blocks.N.linear1"]
        layers[f"single_blocks.N.linear1.{place}"] = Target((module,), share=share)
    return {name.replace(".", "_"): target for name, target in layers.items()}


_LAYERS = _layers()
