"""The names that other programs give the tensors of a model -> the official ones.

BFL's names are those of the one-file checkpoints, which ComfyUI and the GGUF of transformers have
too; llama.cpp's are those of the GGUF of text encoders. One tensor of theirs may be several of the
official ones, and its rows may be in another order: a `Place` says so. Layers and tensors that are
called officially already stay as they are. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple


class Place(NamedTuple):
    """What a tensor is officially: the chunk `chunk` of `of` equal ones of its rows is `name`.

    With `swapped` the two halves of the rows change places.
    """

    name: str
    chunk: int = 0
    of: int = 1
    swapped: bool = False


Rule = tuple[str, Callable[[re.Match[str]], Sequence[Place]]]


def _renamed(name: str) -> Callable[[re.Match[str]], Sequence[Place]]:
    """One tensor for one: \\1 and so on stand for the groups of the match."""
    return lambda match: [Place(match.expand(name))]


def _chunks(*names: str) -> Callable[[re.Match[str]], Sequence[Place]]:
    """Equal chunks of the rows, in this order."""
    return lambda match: [
        Place(match.expand(name), chunk, len(names)) for chunk, name in enumerate(names)
    ]


def _turned(name: str) -> Callable[[re.Match[str]], Sequence[Place]]:
    return lambda match: [Place(match.expand(name), swapped=True)]


def _attention(theirs: str, ours: tuple[str, str, str], out: str, norm: str) -> list[Rule]:
    """One stream's attention in a double block."""
    block, within = rf"double_blocks\.(\d+)\.{theirs}_attn", r"transformer_blocks.\1.attn"
    return [
        (rf"{block}\.qkv\.weight", _chunks(*(f"{within}.{name}.weight" for name in ours))),
        (rf"{block}\.proj\.weight", _renamed(f"{within}.{out}.weight")),
        (
            rf"{block}\.norm\.(query|key)_norm\.(?:scale|weight)",
            lambda m: [Place(f"transformer_blocks.{m[1]}.attn.{norm}_{m[2][0]}.weight")],
        ),
    ]


_MODULATIONS = "(double_stream_modulation_(?:img|txt)|single_stream_modulation)"

_TRANSFORMER: list[Rule] = [
    (r"img_in\.weight", _renamed("x_embedder.weight")),
    (r"txt_in\.weight", _renamed("context_embedder.weight")),
    (
        r"time_in\.in_layer\.weight",
        _renamed("time_guidance_embed.timestep_embedder.linear_1.weight"),
    ),
    (
        r"time_in\.out_layer\.weight",
        _renamed("time_guidance_embed.timestep_embedder.linear_2.weight"),
    ),
    (rf"{_MODULATIONS}\.lin\.weight", _renamed(r"\1.linear.weight")),
    *_attention("img", ("to_q", "to_k", "to_v"), "to_out.0", "norm"),
    *_attention("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "norm_added"),
    *(
        (
            rf"double_blocks\.(\d+)\.{theirs}\.{number}\.weight",
            _renamed(rf"transformer_blocks.\1.{ours}.{layer}.weight"),
        )
        for theirs, ours in (("img_mlp", "ff"), ("txt_mlp", "ff_context"))
        for number, layer in ((0, "linear_in"), (2, "linear_out"))
    ),
    (
        r"single_blocks\.(\d+)\.linear1\.weight",
        _renamed(r"single_transformer_blocks.\1.attn.to_qkv_mlp_proj.weight"),
    ),
    (
        r"single_blocks\.(\d+)\.linear2\.weight",
        _renamed(r"single_transformer_blocks.\1.attn.to_out.weight"),
    ),
    (
        r"single_blocks\.(\d+)\.norm\.(query|key)_norm\.(?:scale|weight)",
        lambda m: [Place(f"single_transformer_blocks.{m[1]}.attn.norm_{m[2][0]}.weight")],
    ),
    (r"final_layer\.linear\.weight", _renamed("proj_out.weight")),
    # BFL has the shift before the scale.
    (r"final_layer\.adaLN_modulation\.1\.weight", _turned("norm_out.linear.weight")),
]

_QWEN3: list[Rule] = [
    (r"((?:embed_tokens|layers|norm)\..+)", _renamed(r"model.\1")),
    (r"token_embd\.weight", _renamed("model.embed_tokens.weight")),
    (r"output_norm\.weight", _renamed("model.norm.weight")),
    (r"output\.weight", _renamed("lm_head.weight")),
    *(
        (rf"blk\.(\d+)\.{theirs}\.weight", _renamed(rf"model.layers.\1.{ours}.weight"))
        for theirs, ours in {
            "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items()
    ),
]

_VAE_LEAVES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "conv1": "conv1",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
_VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
_VAE_LEVELS = 4


def _level(kind: str, number: str) -> str:
    """BFL counts levels from the image inwards, and diffusers those of the decoder outwards."""
    return f"{kind}_blocks.{number if kind == 'down' else _VAE_LEVELS - 1 - int(number)}"


def _vae_resnet(m: re.Match[str]) -> list[Place]:
    leaf = _VAE_LEAVES[m[5]]
    return [Place(f"{m[1]}.{_level(m[2], m[3])}.resnets.{m[4]}.{leaf}.{m[6]}")]


_LEAVES = "|".join(_VAE_LEAVES)

_VAE: list[Rule] = [
    (
        rf"(encoder|decoder)\.(down|up)\.([0-3])\.block\.(\d)\.({_LEAVES})\.(weight|bias)",
        _vae_resnet,
    ),
    (
        r"(encoder|decoder)\.(down|up)\.([0-3])\.(down|up)sample\.conv\.(weight|bias)",
        lambda m: [Place(f"{m[1]}.{_level(m[2], m[3])}.{m[4]}samplers.0.conv.{m[5]}")],
    ),
    (
        rf"(encoder|decoder)\.mid\.block_([12])\.({_LEAVES})\.(weight|bias)",
        lambda m: [Place(f"{m[1]}.mid_block.resnets.{int(m[2]) - 1}.{_VAE_LEAVES[m[3]]}.{m[4]}")],
    ),
    (
        r"(encoder|decoder)\.mid\.attn_1\.(norm|q|k|v|proj_out)\.(weight|bias)",
        lambda m: [Place(f"{m[1]}.mid_block.attentions.0.{_VAE_ATTENTION[m[2]]}.{m[3]}")],
    ),
    (r"(encoder|decoder)\.norm_out\.(weight|bias)", _renamed(r"\1.conv_norm_out.\2")),
    (r"encoder\.quant_conv\.(weight|bias)", _renamed(r"quant_conv.\1")),
    (r"decoder\.post_quant_conv\.(weight|bias)", _renamed(r"post_quant_conv.\1")),
]

_RULES = {"transformer": _TRANSFORMER, "text_encoder": _QWEN3, "vae": _VAE}

_OFFICIAL = {
    "transformer": r"x_embedder|context_embedder|time_guidance_embed|proj_out|norm_out|"
    rf"{_MODULATIONS}\.linear|transformer_blocks|single_transformer_blocks",
    "text_encoder": r"model|lm_head",
    "vae": r"(?:encoder|decoder)\.(?:conv_in|conv_out|conv_norm_out|down_blocks|up_blocks|"
    r"mid_block)|bn|quant_conv|post_quant_conv",
}
"""How official names begin. Whether a model has the tensor is seen where it is loaded."""


def places(part: str, name: str) -> Sequence[Place]:
    """What a tensor of a part is officially; nothing if no rule knows it."""
    for pattern, make in _rules(part):
        if match := pattern.fullmatch(name):
            return make(match)
    if re.match(rf"(?:{_OFFICIAL[part]})\.", name):
        return [Place(name)]
    return []


@cache
def _rules(part: str) -> list[tuple[re.Pattern[str], Callable[[re.Match[str]], Sequence[Place]]]]:
    return [(re.compile(pattern, re.ASCII), make) for pattern, make in _RULES[part]]
