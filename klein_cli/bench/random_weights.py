"""Random weights in the official layout, as a snapshot on disk: for timing, and for tests.

`4b` has the true sizes, file names, shards, keys and dtype of FLUX.2-klein-4B (16 GB), and `9b`
those of FLUX.2-klein-9B (35 GB); `small` is the same model in miniature (a few MB, float32). The
images are coloured noise. Every norm weight and batch-norm statistic differs from its default
and no pad embedding is zero, so that a part left out or misplaced shows.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from klein_cli.bench.random_files import (
    OFFICIAL_SPECIAL_TOKENS,
    SPECIAL_TOKENS,
    write_json,
    write_model_index,
    write_scheduler_config,
    write_tokenizer,
)
from klein_cli.device.device import cuda_devices

# What transformers and diffusers put into one file.
_SHARD_BYTES = {
    "text_encoder": 5_000_000_000,
    "transformer": 10_000_000_000,
    "vae": 10_000_000_000,
}

CORPUS = (
    "a red circle on a white background",
    "a small blue square above a large yellow star",
    "two cats asleep on a windowsill, soft morning light, oil on canvas",
    "a lighthouse on a cliff in a storm, waves breaking, dramatic clouds, wide angle",
    "portrait of an old fisherman with a grey beard, 85mm, shallow depth of field",
    "user assistant",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What tells one size of the model from another."""

    text_encoder: dict[str, Any]
    transformer: dict[str, Any]
    vae: dict[str, Any]
    vocab_size: int = 512
    tokens: int = 400
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    dtype: torch.dtype = torch.bfloat16


def _text_encoder(
    hidden: int, inner: int, layers: int, heads: tuple[int, int], head_dim: int, **more: Any
) -> dict[str, Any]:
    """`heads`: of the queries, and of keys and values."""
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": head_dim,
        **more,
    }


def _transformer(blocks: tuple[int, int], heads: int, head_dim: int, waves: int) -> dict[str, Any]:
    """`blocks`: with two streams, and with one."""
    return {
        "num_layers": blocks[0],
        "num_single_layers": blocks[1],
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "axes_dims_rope": [head_dim // 4] * 4,
        "timestep_guidance_channels": waves,
    }


def _vae(*widths: int, layers: int, groups: int) -> dict[str, Any]:
    return {
        "block_out_channels": list(widths),
        "layers_per_block": layers,
        "norm_num_groups": groups,
    }


# All FLUX.2 models have these.
_OFFICIAL: dict[str, Any] = {
    "vocab_size": 151936,
    "tokens": 151669,
    "special_tokens": OFFICIAL_SPECIAL_TOKENS,
    "vae": _vae(128, 256, 512, 512, layers=2, groups=32),
}

SIZES = {
    "4b": Sizes(
        **_OFFICIAL,
        text_encoder=_text_encoder(2560, 9728, 36, (32, 8), 128),
        transformer=_transformer((5, 20), heads=24, head_dim=128, waves=256),
    ),
    "9b": Sizes(
        **_OFFICIAL,
        text_encoder=_text_encoder(4096, 12288, 36, (32, 8), 128, tie_word_embeddings=False),
        transformer=_transformer((8, 24), heads=32, head_dim=128, waves=256),
    ),
    "medium": Sizes(
        text_encoder=_text_encoder(256, 768, 30, (4, 2), 128),
        transformer=_transformer((2, 6), heads=6, head_dim=128, waves=256),
        vae=_vae(64, 128, 256, 256, layers=2, groups=32),
    ),
    "small": Sizes(
        text_encoder=_text_encoder(64, 128, 30, (4, 2), 16),
        transformer=_transformer((2, 2), heads=2, head_dim=32, waves=32),
        vae=_vae(16, 16, 32, 32, layers=1, groups=8),
        dtype=torch.float32,
    ),
}


def write_snapshot(
    root: Path, size: str = "small", *, distilled: bool = True, seed: int = 0
) -> None:
    """Write a whole snapshot to `root`."""
    sizes = SIZES[size]
    root.mkdir(parents=True, exist_ok=True)
    write_model_index(root, distilled=distilled)
    write_scheduler_config(root)
    write_tokenizer(root / "tokenizer", CORPUS, sizes.tokens, sizes.special_tokens)
    large = snapshot_bytes(size) > 1 << 30
    device = torch.device("cuda" if large and cuda_devices() else "cpu")
    generator = torch.Generator(device).manual_seed(seed)
    for name, table in part_configs(sizes).items():
        write_json(root / name / "config.json", table)
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        limit = _SHARD_BYTES[name]
        _write_weights(_tensors(name, table, sizes.dtype), root / name, stem, limit, generator)
    write_json(root / "text_encoder" / "generation_config.json", {"do_sample": True})


def snapshot_bytes(size: str) -> int:
    """How much disk the weights of a snapshot of this size take."""
    sizes = SIZES[size]
    parts = (_tensors(name, table, sizes.dtype) for name, table in part_configs(sizes).items())
    return sum(tensor.nbytes for part in parts for tensor in part.values())


def part_configs(sizes: Sizes) -> dict[str, dict[str, Any]]:
    """The config.json of each part."""
    layers = sizes.text_encoder["num_hidden_layers"]
    text_encoder = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": str(sizes.dtype).removeprefix("torch."),
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "layer_types": ["full_attention"] * layers,
        "max_position_embeddings": 40960,
        "max_window_layers": layers,
        "model_type": "qwen3",
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "transformers_version": "4.56.1",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": sizes.vocab_size,
        **sizes.text_encoder,
    }
    joint = {"guidance_embeds": False, "joint_attention_dim": 3 * text_encoder["hidden_size"]}
    return {
        "text_encoder": text_encoder,
        "transformer": _filled("Flux2Transformer2DModel", {**joint, **sizes.transformer}),
        "vae": _filled("AutoencoderKLFlux2", sizes.vae),
    }


def _filled(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """A config with the defaults of its class in diffusers, which are the official models'."""
    import diffusers

    with torch.device("meta"):
        module = getattr(diffusers, name).from_config(config)
    table: dict[str, Any] = json.loads(module.to_json_string())
    return table


def _tensors(name: str, config: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """The part's tensors by name, without memory, as its library builds it."""
    module: Any
    with torch.device("meta"):
        if name == "text_encoder":
            from transformers import Qwen3Config, Qwen3ForCausalLM

            module = Qwen3ForCausalLM(Qwen3Config(**config))
        else:
            import diffusers

            module = getattr(diffusers, config["_class_name"]).from_config(config)
    tensors = module.state_dict().items()
    kept = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors}
    if config.get("tie_word_embeddings", False):
        del kept["lm_head.weight"]
    return kept


def _write_weights(
    tensors: dict[str, Tensor],
    folder: Path,
    stem: str,
    limit: int,
    generator: torch.Generator,
) -> None:
    """One file, or shards of at most `limit` bytes and their index, as save_pretrained does."""
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=limit
    )
    for file, names in split.filename_to_tensors.items():
        drawn = {name: _random(name, tensors[name], generator) for name in names}
        save_file(drawn, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        where = dict(sorted(split.tensor_to_filename.items()))
        index = {"metadata": split.metadata, "weight_map": where}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def _random(name: str, place: Tensor, generator: torch.Generator) -> Tensor:
    """Values that keep activations finite through all layers, and leave no default in place."""
    if not place.is_floating_point():
        return torch.ones(place.shape, dtype=place.dtype)
    drawn = torch.randn(
        place.shape, generator=generator, device=generator.device, dtype=torch.float32
    )
    if name.endswith("running_var"):
        drawn = drawn.abs().add_(0.5)
    elif name.endswith("running_mean"):
        drawn = drawn.mul_(0.5)
    elif place.ndim == 1 and name.endswith("weight"):
        drawn = drawn.mul_(0.2).add_(1.0)
    elif place.ndim == 1:
        drawn = drawn.mul_(0.1)
    elif not name.endswith("embed_tokens.weight"):
        drawn = drawn.mul_(1 / math.sqrt(place[0].numel()))
    return drawn.to(place.dtype).cpu()
