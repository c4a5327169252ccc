"""Write what was learned as a folder in the diffusers layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2
from safetensors.torch import save_file
from tiny_models import ENCODER, ROPE_THETA, TRANSFORMER, VAE, WEIGHTS
from torch import Tensor

from klein_cli.bench.random_files import write_json, write_model_index, write_scheduler_config


def write_model(
    to: Path,
    averages: dict[str, Tensor],
    vae: AutoencoderKLFlux2,
    tokenizer: Path,
    dtype: torch.dtype,
) -> None:
    """A snapshot of the averaged weights of a `Student`, its autoencoder and its tokenizer."""
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "dit": {}, "probe": {}}
    for name, tensor in averages.items():
        part, _, key = name.partition(".")
        parts[part][key] = tensor.cpu()
    encoder = {f"model.{key}": tensor for key, tensor in parts["encoder"].items()}
    # Stock pipelines build all 28 layers and the final norm; nothing reads what these compute.
    last = [key for key in encoder if key.startswith("model.layers.26.")]
    encoder |= {key.replace(".26.", ".27."): torch.zeros_like(encoder[key]) for key in last}
    encoder["model.norm.weight"] = torch.ones(ENCODER["hidden_size"])
    write_weights(to / WEIGHTS["text_encoder"], encoder, dtype)
    write_weights(to / WEIGHTS["transformer"], parts["dit"], dtype)
    states = {name: tensor.cpu() for name, tensor in vae.state_dict().items()}
    write_weights(to / WEIGHTS["vae"], states, dtype)
    _write_configs(to, str(dtype).removeprefix("torch."))
    shutil.copytree(tokenizer, to / "tokenizer", dirs_exist_ok=True)


def write_weights(path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    """One safetensors file; integers keep their type, statistics their float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exact = ("running_mean", "running_var")
    tensors = {
        name: (t if not t.is_floating_point() or name.endswith(exact) else t.to(dtype))
        .cpu()
        .contiguous()
        for name, t in state.items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def _write_configs(to: Path, dtype: str) -> None:
    write_model_index(to, distilled=True)
    write_scheduler_config(to)
    version = {"_diffusers_version": "0.42.1"}
    kinds = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
    blocks = {name: [kind] * len(VAE["block_out_channels"]) for name, kind in kinds.items()}
    transformer = {"_class_name": "Flux2Transformer2DModel", **version, **TRANSFORMER}
    write_json(to / "transformer" / "config.json", transformer)
    vae = {"_class_name": "AutoencoderKLFlux2", **version, **VAE, **blocks}
    write_json(to / "vae" / "config.json", vae)
    encoder = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": 40960,
        "rope_theta": ROPE_THETA,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": 28,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "use_cache": True,
        **ENCODER,
    }
    write_json(to / "text_encoder" / "config.json", encoder)
