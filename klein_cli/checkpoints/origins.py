"""Which of the presets a transformer in one file is, where that can be known.

Base, distilled and kv models share all shapes, so that a digest alone tells them apart. The hub's
client names what it downloads by it; of other files nothing is read for this: it would take as long
as to load them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klein_cli.checkpoints.hub.repository import is_digest
from klein_cli.checkpoints.sizes import size_of_model
from klein_cli.errors import ModelError

_DIGESTS = {
    "ec3d4e73": "klein-4b",
    "9c5fed22": "klein-base-4b",
    "97ed34fe": "klein-4b",
    "44bab3a8": "klein-base-4b",
    "865ba09f": "klein-9b",
    "a9f5028c": "klein-base-9b",
    "d8c5007b": "klein-4b",
    "f66faefe": "klein-base-4b",
    "730d6bdb": "klein-base-9b",
}
"""How the SHA-256 of official files begin: bfloat16, fp8 and nvfp4."""


def preset_of_file(path: Path, config: Mapping[str, Any]) -> tuple[str, bool]:
    """The preset of a transformer's file, and whether it is known, or the distilled of its size.

    Raises ModelError for a size that no preset has.
    """
    known = known_preset(path)
    if known is not None:
        return known, True
    size = size_of_model("transformer", config)
    if size is None:
        raise ModelError(
            f"{path} has a transformer of a size that none of klein's models has",
            f"say the model that it belongs to: -m MODEL --transformer {path}",
        )
    return f"klein-{size}", False


def known_preset(path: Path) -> str | None:
    """The preset of an official file that the hub's client downloaded; None for any other."""
    return _DIGESTS.get((_digest(path) or "")[:8])


def _digest(path: Path) -> str | None:
    """What the hub's client has noted of a file that it downloaded, in its cache or elsewhere."""
    blob = path.resolve().name
    if is_digest(blob):
        return blob
    for above in path.absolute().parents:
        notes = above / ".cache" / "huggingface" / "download"
        noted = notes / f"{path.absolute().relative_to(above)}.metadata"
        if noted.is_file() and noted.stat().st_mtime >= path.stat().st_mtime - 1:
            lines = noted.read_text(encoding="utf-8", errors="replace").splitlines()
            found = lines[1].strip('"') if len(lines) > 1 else ""
            return found if is_digest(found) else None
    return None
