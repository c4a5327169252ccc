"""What `klein info` says of an adapter: what it is, who made it, for what, and how it is used.

All of it is a stranger's word: bounded, and never evaluated.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from klein_cli.checkpoints.folder import digest
from klein_cli.checkpoints.lora.adapter import AdapterFile, read_adapter
from klein_cli.checkpoints.lora.alphas import CONFIG_FILE, HEADER_CONFIG
from klein_cli.checkpoints.lora.bases import FLUX1, base_written
from klein_cli.checkpoints.lora.layers import Layer
from klein_cli.errors import ModelError

_TRIGGERS = (
    "modelspec.trigger_phrase",
    "trigger_phrase",
    "trigger_words",
    "trigger_word",
    "ss_trigger_words",
    "instance_prompt",
)
_TRAINERS = {
    "ot_revision": "OneTrainer",
    "ot_config": "OneTrainer",
    "lycoris_config": "SimpleTuner or LyCORIS",
    HEADER_CONFIG: "diffusers",
}
_MODULES = {"networks.lora_flux_2": "musubi-tuner", "networks.": "sd-scripts or musubi-tuner"}
_LONGEST = 300
_LONGEST_TABLE = 4_000_000
_TAGS = 8


def about_adapter(path: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """What an adapter is, by its header, a line a fact. One that klein refuses is described as far
    as that goes.

    Raises ModelError when the file cannot be read.
    """
    try:
        adapter = read_adapter(path)
    except ModelError as error:
        written = base_written(metadata)
        facts = {"for": written} if written else {}
        facts |= dict(_told(path, metadata))
        return {**facts, "sha256": digest(path), "klein": f"refuses it: {error.message}"}
    count = len(adapter.modules)
    return {
        "adapter": f"{adapter.kinds}, {count} layer{'s' * (count > 1)}",
        "for": _base(adapter),
        **dict(_strengths(adapter.layers)),
        **dict(_told(path, metadata)),
        "sha256": adapter.sha256,
        "klein": f"adds it to the model's weights: --lora {shlex.quote(str(path))}",
    }


def _base(adapter: AdapterFile) -> str:
    name, certain = adapter.base
    if name is None:
        return "a model of none of the published sizes"
    return name if certain else f"{name}, or {FLUX1}: nothing in it tells them apart"


def _strengths(layers: Iterable[Layer]) -> Iterator[tuple[str, str]]:
    alphas = sorted({layer.alpha for layer in layers if layer.alpha is not None})
    scales = sorted({one.scale for layer in layers for one in layer.factors})
    if alphas:
        yield "alpha", _range(alphas)
    yield "strength", _range(scales)


def _range(numbers: list[float]) -> str:
    least, most = numbers[0], numbers[-1]
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def _told(path: Path, metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the header says of itself."""
    trainer = _trainer(path, metadata)
    if trainer:
        yield "trainer", trainer
    for name, key in (("title", "modelspec.title"), ("author", "modelspec.author")):
        if _text(metadata, key):
            yield name, _text(metadata, key)
    triggers = dict.fromkeys(filter(None, (_text(metadata, key) for key in _TRIGGERS)))
    if triggers:
        yield "trigger", ", ".join(triggers)
    tags = _tags(metadata.get("ss_tag_frequency"))
    if tags:
        yield "tags", tags


def _trainer(path: Path, metadata: Mapping[str, Any]) -> str:
    software = _table(metadata.get("software"))
    if software.get("name"):
        return f"{software['name']} {software.get('version', '')}".strip()[:_LONGEST]
    module = _text(metadata, "ss_network_module")
    for start, name in _MODULES.items():
        if module.startswith(start):
            return f"{name} ({module})"
    for key, name in _TRAINERS.items():
        if key in metadata:
            return name
    return "peft" if (path.parent / CONFIG_FILE).is_file() and path.stem == "adapter_model" else ""


def _tags(text: Any) -> str:
    """The most frequent tags of the images that it was trained on, of all its folders together."""
    counts: Counter[str] = Counter()
    for folder in _table(text).values():
        if isinstance(folder, dict):
            counts.update({t: n for t, n in folder.items() if type(n) is int and 0 < n < 10**9})
    return ", ".join(f"{tag.strip()[:40]} ({n})" for tag, n in counts.most_common(_TAGS))


def _table(text: Any) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > _LONGEST_TABLE:
        return {}
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    return value.strip()[:_LONGEST] if isinstance(value, str) else ""
