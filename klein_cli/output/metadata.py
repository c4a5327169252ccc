"""What a picture says about itself: everything needed to make it again.

Two forms travel in the file: the record, JSON that klein reads back, and the `parameters` text
that other picture tools show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from klein_cli import __version__
from klein_cli.recipe import Recipe, Settings

FORMAT = 1


def record(
    recipe: Recipe,
    settings: Settings,
    *,
    revision: str | None,
    provenance: Mapping[str, str],
    step_down: str | None = None,
) -> dict[str, Any]:
    """The record of one picture, ready for JSON.

    `revision` is the model's commit on the hub; `provenance` names the versions and the machine;
    `step_down` says what was done differently for want of memory. No time of day goes in: the
    same recipe gives the same file.
    """
    written: dict[str, Any] = {
        "format": FORMAT,
        "klein": __version__,
        "recipe": asdict(recipe),
        "settings": asdict(settings),
        "model": {"name": recipe.model, "revision": revision},
        "provenance": dict(provenance),
    }
    if step_down is not None:
        written["step_down"] = step_down
    return written


def to_json(written: Mapping[str, Any]) -> str:
    """The record as one line of ASCII, fit for every kind of metadata field."""
    return json.dumps(written, separators=(",", ":"))


def parameters(recipe: Recipe) -> str:
    """The recipe as the `parameters` text that other picture tools read."""
    lines = [recipe.prompt.replace("\0", "")]
    if recipe.negative_prompt:
        lines.append("Negative prompt: " + recipe.negative_prompt.replace("\0", ""))
    lines.append(
        f"Steps: {recipe.steps}, Sampler: Euler, CFG scale: {recipe.guidance:g}, "
        f"Seed: {recipe.seed}, Size: {recipe.width}x{recipe.height}, Model: {recipe.model}, "
        f"Version: klein {__version__}"
    )
    return "\n".join(lines)
