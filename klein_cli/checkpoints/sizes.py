"""The shapes of a part's tensors -> the entries of its official config.json.

What shapes do not tell is `like` the configuration of the part whose place the file takes, and else
as all FLUX.2 [klein] models have it. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from klein_cli.checkpoints.source import DAMAGED, Stored
from klein_cli.errors import ModelError

Tensors = Mapping[str, Stored]
Config = dict[str, Any]

_QWEN3_LAYERS = {2560: 36, 4096: 36}
"""Layers of the text encoders of klein, by width: files may lack those that are not needed."""


def config_from(part: str, tensors: Tensors, metadata: Mapping[str, Any], place: str) -> Config:
    """What the shapes of a part say, by official names; `metadata` is GGUF's.

    Raises ModelError when a tensor that must be known is missing, or shapes contradict each other.
    """
    return _CONFIGS[part](_Shapes(tensors, place), metadata)


def with_defaults(part: str, config: Mapping[str, Any], like: Mapping[str, Any]) -> Config:
    """A whole configuration, from what shapes say and what they do not."""
    defaults = _defaults(part, config)
    known = {name: like.get(name, value) for name, value in defaults.items()}
    return {**known, **config}


class _Shapes:
    """The shapes of tensors by name, of which those asked for must be there."""

    def __init__(self, tensors: Tensors, place: str) -> None:
        self._tensors = tensors
        self._place = place

    def side(self, name: str, axis: int) -> int:
        held = self._tensors.get(name)
        if held is None:
            raise ModelError(f"{self._place} lacks {name}", DAMAGED)
        if not -len(held.shape) <= axis < len(held.shape) or not held.shape[axis]:
            raise self.fault(f"{name} has shape {held.shape}")
        return held.shape[axis]

    def has(self, name: str) -> bool:
        return name in self._tensors

    def count(self, pattern: str) -> int:
        """How many things there are, by the largest number that the pattern's group matches."""
        found = (re.match(pattern, name, re.ASCII) for name in self._tensors)
        return max((int(match[1][:9]) + 1 for match in found if match), default=0)

    def ratio(self, name: str, axis: int, by: int) -> int:
        side = self.side(name, axis)
        if side % by:
            raise self.fault(f"{name} has {side} where multiples of {by} are wanted")
        return side // by

    def fault(self, why: str) -> ModelError:
        return ModelError(
            f"{self._place}: {why}, which does not fit its other tensors",
            "this is not FLUX.2 [klein], or the file is damaged",
        )


def _transformer(shapes: _Shapes, metadata: Mapping[str, Any]) -> Config:
    width = shapes.side("x_embedder.weight", 0)
    head = shapes.side("transformer_blocks.0.attn.norm_q.weight", 0)
    if width % head:
        raise shapes.fault(f"heads of {head} channels in {width}")
    inner = shapes.ratio("transformer_blocks.0.ff.linear_in.weight", 0, 2)
    return {
        "_class_name": "Flux2Transformer2DModel",
        "in_channels": shapes.side("x_embedder.weight", -1),
        "out_channels": shapes.side("proj_out.weight", 0),
        "num_layers": shapes.count(r"transformer_blocks\.(\d+)\."),
        "num_single_layers": shapes.count(r"single_transformer_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes.side("context_embedder.weight", -1),
        "timestep_guidance_channels": shapes.side(
            "time_guidance_embed.timestep_embedder.linear_1.weight", -1
        ),
        "mlp_ratio": inner / width,
        "guidance_embeds": False,
    }


def _text_encoder(shapes: _Shapes, metadata: Mapping[str, Any]) -> Config:
    hidden = shapes.side("model.embed_tokens.weight", -1)
    layer = "model.layers.0"
    head = shapes.side(f"{layer}.self_attn.q_norm.weight", 0)
    found = shapes.count(r"model\.layers\.(\d+)\.")
    # The last layer's output is normalised at the end, and so is no hidden state of a whole model.
    least = found if shapes.has("model.norm.weight") else found + 1
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shapes.side("model.embed_tokens.weight", 0),
        "hidden_size": hidden,
        "intermediate_size": shapes.side(f"{layer}.mlp.gate_proj.weight", 0),
        "num_hidden_layers": max(least, _QWEN3_LAYERS.get(hidden, 0)),
        "num_attention_heads": shapes.ratio(f"{layer}.self_attn.q_proj.weight", 0, head),
        "num_key_value_heads": shapes.ratio(f"{layer}.self_attn.k_proj.weight", 0, head),
        "head_dim": head,
        "tie_word_embeddings": not shapes.has("lm_head.weight"),
    }
    for key, name in {
        "qwen3.rope.freq_base": "rope_theta",
        "qwen3.attention.layer_norm_rms_epsilon": "rms_norm_eps",
    }.items():
        if isinstance(metadata.get(key), float):
            config[name] = float(f"{metadata[key]:.6g}")  # 1e-6 comes back from 32 bits as itself
    return config


def _vae(shapes: _Shapes, metadata: Mapping[str, Any]) -> Config:
    levels = range(shapes.count(r"decoder\.up_blocks\.(\d+)\."))
    decoder = [
        shapes.side(f"decoder.up_blocks.{level}.resnets.0.conv1.weight", 0)
        for level in reversed(levels)
    ]
    config: Config = {
        "_class_name": "AutoencoderKLFlux2",
        "block_out_channels": decoder,
        "layers_per_block": shapes.count(r"decoder\.up_blocks\.0\.resnets\.(\d+)\.") - 1,
        "latent_channels": shapes.side("decoder.conv_in.weight", 1),
        "out_channels": shapes.side("decoder.conv_out.weight", 0),
        "down_block_types": ["DownEncoderBlock2D" for _ in levels],
        "up_block_types": ["UpDecoderBlock2D" for _ in levels],
    }
    patches = shapes.ratio("bn.running_mean", 0, config["latent_channels"])
    if patches != 4:
        raise shapes.fault(f"bn.running_mean covers {patches} places")
    if shapes.has("encoder.conv_in.weight"):
        encoder = [
            shapes.side(f"encoder.down_blocks.{level}.resnets.0.conv1.weight", 0)
            for level in levels
        ]
        if encoder != decoder:
            config |= {"block_out_channels": encoder, "decoder_block_out_channels": decoder}
    return config


_CONFIGS: dict[str, Callable[[_Shapes, Mapping[str, Any]], Config]] = {
    "transformer": _transformer,
    "text_encoder": _text_encoder,
    "vae": _vae,
}


def _defaults(part: str, config: Mapping[str, Any]) -> Config:
    if part == "transformer":
        axes = [config["attention_head_dim"] // 4] * 4
        return {"patch_size": 1, "axes_dims_rope": axes, "rope_theta": 2000, "eps": 1e-6}
    if part == "text_encoder":
        return {
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "max_position_embeddings": 40960,
        }
    return {"norm_num_groups": 32, "batch_norm_eps": 1e-4, "patch_size": [2, 2]}


def size_of_model(part: str, config: Mapping[str, Any]) -> str | None:
    """ "4b" or "9b", of which this is the transformer or the text encoder; None for any other."""
    if part == "transformer":
        names = ("num_layers", "num_single_layers", "joint_attention_dim")
        found = tuple(config.get(name) for name in names)
        return {(5, 20, 7680): "4b", (8, 24, 12288): "9b"}.get(found)  # type: ignore[arg-type]
    return {2560: "4b", 4096: "9b"}.get(config.get("hidden_size", 0))
