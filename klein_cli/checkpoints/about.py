"""What `klein info` says of a file of weights, from its header alone. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from klein_cli.checkpoints.identify import is_adapter, read_any_header
from klein_cli.checkpoints.lora.about import Facts, about_adapter

SUFFIXES = (".safetensors", ".sft", ".gguf")


def about(path: Path) -> Facts:
    """Facts of an adapter or of a model's file. Raises ModelError when it can be neither."""
    header = read_any_header(path)
    if is_adapter(header.tensors):
        return about_adapter(path, header.metadata)
    return []
