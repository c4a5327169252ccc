"""What a file of weights is, in words: what `klein info` says of it.

From its header alone; whatever it says of itself is a stranger's. Imports no torch.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klein_cli.checkpoints.identify import (
    PART_NAMES,
    contents,
    is_adapter,
    read_any_header,
)
from klein_cli.checkpoints.kinds import kind_of
from klein_cli.checkpoints.lora.about import about_adapter
from klein_cli.checkpoints.origins import known_preset
from klein_cli.checkpoints.single_file import OPTIONS, FileCheckpoint
from klein_cli.checkpoints.sizes import size_of_model
from klein_cli.checkpoints.source import Stored
from klein_cli.presets import presets
from klein_cli.tables import shortened

_SAID = ("general.name", "modelspec.title", "title", "name", "general.author", "modelspec.author")
_LONGEST = 200


def about(path: Path) -> dict[str, str]:
    """What a file of a model's parts, or an adapter, is: a line a fact.

    Raises ModelError for anything else, and for what klein cannot read.
    """
    header = read_any_header(path)
    if is_adapter(header.tensors):
        return about_adapter(path, header.metadata)
    held = contents(path)
    facts = {"file": f"{_size(path.stat().st_size)}, {_container(path)}"}
    names, kinds = {}, {}
    for part in held.prefixes:
        checkpoint = FileCheckpoint(path, part)
        config, name = checkpoint.config(), PART_NAMES[part]
        facts[name] = _DESCRIBED[part](config)
        names[name] = "official" if checkpoint.is_official else _OTHERS[part]
        kinds[name] = _kinds(checkpoint.tensors())
        if part == "transformer":
            facts["base"] = _base(path, config)
    given = " ".join(f"{OPTIONS[part]} {shlex.quote(str(path))}" for part in held.prefixes)
    facts |= {
        "names": _by_part(names),
        "stored as": _by_part(kinds),
        "use": f"klein generate ... {given}",
    }
    said = header.metadata
    titles = [
        shortened(str(said[key]), _LONGEST) for key in _SAID if isinstance(said.get(key), str)
    ]
    return {**facts, "says": "; ".join(dict.fromkeys(titles))} if titles else facts


def _by_part(facts: Mapping[str, str]) -> str:
    """What is said of each part, with the part's name where there are several."""
    if len(facts) == 1:
        return next(iter(facts.values()))
    return "; ".join(f"{part}: {fact}" for part, fact in facts.items())


def _transformer(config: Mapping[str, Any]) -> str:
    width = config["attention_head_dim"] * config["num_attention_heads"]
    size = size_of_model("transformer", config)
    return (
        f"FLUX.2 [klein]{f' {size.upper()}' if size else ''}: {config['num_layers']} double and "
        f"{config['num_single_layers']} single blocks of {width} channels, text embeddings of "
        f"{config['joint_attention_dim']}"
    )


def _text_encoder(config: Mapping[str, Any]) -> str:
    size = size_of_model("text_encoder", config)
    return (
        f"Qwen3 of {config['hidden_size']} channels and {config['num_hidden_layers']} layers, "
        f"{config['vocab_size']} tokens{f': that of the {size.upper()} models' if size else ''}"
    )


def _vae(config: Mapping[str, Any]) -> str:
    widths = config.get("decoder_block_out_channels") or config["block_out_channels"]
    return f"FLUX.2, a decoder of {', '.join(map(str, widths))} channels"


_DESCRIBED = {"transformer": _transformer, "text_encoder": _text_encoder, "vae": _vae}
_OTHERS = {"transformer": "BFL's", "text_encoder": "llama.cpp's", "vae": "BFL's"}


def _kinds(tensors: Mapping[str, Stored]) -> str:
    """Every kind with its number of tensors, those with the most bytes first."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for held in tensors.values():
        counts[kind_of(held)] += 1
        sizes[kind_of(held)] += held.end - held.begin
    return ", ".join(f"{kind} ({counts[kind]} tensors)" for kind, _ in sizes.most_common())


def _base(path: Path, config: Mapping[str, Any]) -> str:
    known = known_preset(path)
    if known is not None:
        return f"{known}, by its digest"
    size = size_of_model("transformer", config)
    if size is None:
        return "of no size that klein has a preset for"
    alike = [name for name in presets() if name.startswith("klein-") and size in name.split("-")]
    return f"{', '.join(alike[:-1])} or {alike[-1]}, which look alike"


def _container(path: Path) -> str:
    with path.open("rb") as file:
        return "GGUF" if file.read(4) == b"GGUF" else "safetensors"


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
