"""What an image says about itself: everything needed to make it again.

Two forms travel in the file: the record, JSON that klein reads back, and the `parameters` text
that other image tools show.

The record's `format` says which of these it is; `klein_cli.output.reading` reads them all:

    1   recipe, settings, the model's name and revision, provenance, step_down
    2   also sigmas, and the model's repo and weights
    3   also references, mask and adapters in the recipe, parts in the model; written for those
        images alone that have any of them
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from klein_cli import __version__
from klein_cli.recipe import Model, Recipe, recorded, recorded_model
from klein_cli.settings import Settings

FORMAT = 3
_OF_WORDS_ALONE = 2

_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
"""What no text field should hold; line breaks of every kind stay."""

_LOOKS_LIKE_A_FIELD = re.compile(
    r"((?:\A|[\n\v\f\x1c-\x1e\x85\u2028\u2029])\s*(?:Negative prompt|Steps))(?=:)", re.IGNORECASE
)
_HASH = 10
"""Digits by which other tools look for a file of weights."""
_PLAIN = re.compile(r"[\w./ +()-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where images come from: the model, how it computes, and the versions and machine that do."""

    model: Model
    settings: Settings
    provenance: Mapping[str, str]

    def record(self, recipe: Recipe, step_down: str | None = None) -> dict[str, Any]:
        """The record of one of its images, ready for JSON.

        `sigmas` are the noise levels, steps + 1 of them; `step_down` says what was done differently
        for want of memory. No time of day and no path goes in: the same recipe gives the same file,
        and a file tells nothing of whose disk it came from.
        """
        from klein_cli.sampling.schedule import noise_levels

        of_words_alone = not (recipe.references or recipe.adapters or self.model.parts)
        written: dict[str, Any] = {
            "format": _OF_WORDS_ALONE if of_words_alone else FORMAT,
            "klein": __version__,
            "recipe": recorded(recipe),
            "settings": asdict(self.settings),
            "sigmas": noise_levels(recipe.width, recipe.height, recipe.steps),
            "model": {**recorded_model(self.model), "name": recipe.model},
            "provenance": dict(self.provenance),
        }
        if step_down is not None:
            written["step_down"] = step_down
        return written


def to_json(written: Mapping[str, Any]) -> str:
    """The record as one line of ASCII, fit for every kind of metadata field."""
    return json.dumps(written, separators=(",", ":"), allow_nan=False)


def parameters(recipe: Recipe) -> str:
    """The recipe as the `parameters` text that other image tools read.

    The prompt stands as it is, lines and all; then "Negative prompt: ", if there is one; then one
    line of "Name: value" separated by commas. Readers know a part by how a line begins, and the
    form has no escape: a line of a prompt that begins like one of ours gets a blank before its
    colon. A value that holds a comma, a colon or a quote is written as a JSON string.
    """
    lines = [_as_prompt(recipe.prompt)]
    if recipe.negative_prompt:
        lines.append("Negative prompt: " + _as_prompt(recipe.negative_prompt))
    values = {
        "Steps": recipe.steps,
        "Sampler": "Euler",
        "CFG scale": repr(float(recipe.guidance)).removesuffix(".0"),
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model": recipe.model,
        **_loras(recipe),
        "Version": f"klein {__version__}",
    }
    lines.append(", ".join(f"{name}: {_as_value(str(value))}" for name, value in values.items()))
    # The name of a folder need not be valid Unicode.
    return "\n".join(lines).encode("utf-8", "replace").decode("utf-8")


def _loras(recipe: Recipe) -> dict[str, str]:
    """The adapters as other tools list them, each with the beginning of its digest."""
    if not recipe.adapters:
        return {}
    named = [(PurePath(each.name).stem, each) for each in recipe.adapters]
    return {
        "Lora hashes": ", ".join(f"{name}: {each.sha256[:_HASH]}" for name, each in named),
        "Lora weights": ", ".join(f"{name}: {each.weight:g}" for name, each in named),
    }


def _as_prompt(text: str) -> str:
    lines = _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _LOOKS_LIKE_A_FIELD.sub(r"\1 ", lines)


def _as_value(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
