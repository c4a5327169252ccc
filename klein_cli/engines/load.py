"""A model's snapshot -> the engine that computes it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.engines.engine import Engine
from klein_cli.optimize.part import Target

_ENGINES = {
    "native": ("klein_cli.engines.native", "NativeEngine"),
    "diffusers": ("klein_cli.engines.diffusers", "DiffusersEngine"),
}
"""Imported when they are asked for: diffusers takes seconds."""


def load_engine(
    name: str,
    snapshot: Snapshot,
    target: Target,
    *,
    text_channels: int,
) -> Engine[Any]:
    """The engine called `name` with a model's weights.

    `text_channels` is the width of the text embeddings that it will be given. Raises ModelError
    when a part is damaged or does not fit the others.
    """
    module, kind = _ENGINES[name]
    engine: Engine[Any] = getattr(import_module(module), kind).load(
        snapshot, target, text_channels=text_channels
    )
    return engine
