"""Names, folders and hub ids -> a Snapshot: a folder in the diffusers layout and its preset.

Imports no torch: a wrong name, folder or prompt is reported before anything heavy starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from klein_cli.presets import Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A model on disk: `root` holds model_index.json and the four parts' folders.

    `revision` is the hub commit, or None for a local folder or the embedded model.
    """

    name: str
    root: Path
    preset: Preset
    revision: str | None = None


def preset_for(model: str) -> Preset:
    """The preset of a preset name, a diffusers-layout folder or a hub id (whose model_index.json is fetched).

    Raises ModelError when there is no such model.
    """
    raise NotImplementedError


def resolve(model: str) -> Snapshot:
    """The model's files on disk, downloaded first when it lives on the hub.

    Raises ModelError when it is not to be had.
    """
    raise NotImplementedError
