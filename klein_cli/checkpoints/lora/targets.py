"""What a layer is called in an adapter -> the layers of the model whose weights it changes.

Names come in two layouts, FLUX.2's own and that of diffusers, with dots or with underscores, which
cannot be told from those within a name: so they are looked up, in underscores, in the closed list
of all layers.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from klein_cli.checkpoints.names import places


class Target(NamedTuple):
    """The modules whose rows, one below the other, an adapter's layer changes.

    `swapped`: the file has the two halves of the rows in the other order. `share` (first, last, of)
    is the part of the rows that is meant, from first / of to last / of.
    """

    modules: tuple[str, ...]
    swapped: bool = False
    share: tuple[int, int, int] | None = None


_INDEX = re.compile(r"(?<=blocks_)(0|[1-9][0-9]{0,3})(?=_)")

_NUMBER = "99"
"""A block's, of which a rule for all blocks is made."""

_OWN = (
    "img_in",
    "txt_in",
    "time_in.in_layer",
    "time_in.out_layer",
    "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.lin",
    "single_stream_modulation.lin",
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
    *(
        f"double_blocks.N.{stream}_{layer}"
        for stream in ("img", "txt")
        for layer in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")
    ),
    *(
        f"double_blocks.N.{stream}_attn.norm.{norm}_norm"
        for stream in ("img", "txt")
        for norm in ("query", "key")
    ),
    *(
        f"single_blocks.N.{layer}"
        for layer in ("linear1", "linear2", "norm.query_norm", "norm.key_norm")
    ),
)
"""FLUX.2's own names of all its layers. What they are officially, `names` knows."""

_FUSED = {
    "double_blocks.N.img_attn.qkv": "transformer_blocks.N.attn.to_qkv",
    "double_blocks.N.txt_attn.qkv": "transformer_blocks.N.attn.to_added_qkv",
}
"""Official names of layers that are fused in one of diffusers' forms, and otherwise three."""

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
    layers = {name: _official(name) for name in _OWN}
    for target in list(layers.values()):
        layers |= {module: Target((module,)) for module in target.modules}
    layers |= {fused: layers[name] for name, fused in _FUSED.items()}
    for name in ("linear_1", "linear_2"):
        module = f"time_guidance_embed.timestep_embedder.{name}"
        layers[module.replace("timestep_embedder.", "")] = layers[module]
    # One trainer once wrote the parts of fused layers one by one.
    for name in _FUSED:
        for place, module in enumerate(layers[name].modules):
            layers[f"{name}.{place}"] = Target((module,))
    for place, share in enumerate(_SHARES):
        name = "single_blocks.N.linear1"
        layers[f"{name}.{place}"] = layers[name]._replace(share=share)
    return {name.replace(".", "_"): target for name, target in layers.items()}


def _official(name: str) -> Target:
    """What one of FLUX.2's own layers is, whatever the number of its block."""
    found = places("transformer", name.replace(".N.", f".{_NUMBER}.") + ".weight")
    modules = (place.name.removesuffix(".weight").replace(_NUMBER, "N") for place in found)
    return Target(tuple(modules), swapped=any(place.swapped for place in found))


_LAYERS = _layers()
