"""configs/*.toml -> Preset: what a model is, where it lives and how it likes to be run."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from klein_cli.errors import ModelError
from klein_cli.tables import WrongTypeError, checked, missing, unknown

DEFAULT_MODEL = "klein-4b"
TAPPED_LAYERS = (9, 18, 27)
GIGABYTE = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One model's facts. Sides in pixels.

    `repo` is a hub id, or "" for weights that ship inside the package; `tapped_layers` are the
    hidden states that make the text embeddings (0 is the token embedding). `kv_cache` says that the
    model was trained to see of its references the keys and values that one pass leaves. `free`
    says that the licence is known to allow any use. `download_gb` is what klein fetches of the
    repository, `memory_gb` what the weights alone take on a GPU in bfloat16, both in 10**9 bytes;
    None where nobody has looked.
    """

    name: str
    description: str
    repo: str
    licence: str
    distilled: bool
    steps: int
    guidance: float
    width: int
    height: int
    min_side: int
    max_side: int
    tapped_layers: tuple[int, ...]
    kv_cache: bool = False
    free: bool = False
    download_gb: float | None = None
    memory_gb: float | None = None


def configs_dir() -> Path:
    """The presets' folder: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


@cache
def presets() -> dict[str, Preset]:
    """Every preset by name, in the order of their names. Raises ModelError on a broken file."""
    paths = sorted(configs_dir().glob("*.toml"), key=lambda path: path.stem)
    found = {path.stem: _read(path) for path in paths}
    if DEFAULT_MODEL not in found:
        raise ModelError(
            f"no presets in {configs_dir()}", "the installation is damaged: install klein-cli again"
        )
    return found


def unnamed_preset(name: str, *, distilled: bool, kv_cache: bool = False) -> Preset:
    """The preset of a folder or hub id that has none: steps and guidance from `is_distilled`."""
    steps, guidance = (4, 1.0) if distilled else (50, 4.0)
    return Preset(
        name=name,
        description="",
        repo="",
        licence="see the model's own card",
        distilled=distilled,
        steps=steps,
        guidance=guidance,
        width=1024,
        height=1024,
        min_side=16,
        max_side=4096,
        tapped_layers=TAPPED_LAYERS,
        kv_cache=kv_cache,
    )


def _read(path: Path) -> Preset:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    table["name"] = path.stem
    if wrong := sorted(unknown(Preset, table) + missing(Preset, table)):
        raise ModelError(
            f"preset {path} has missing or unknown keys: {', '.join(wrong)}", "fix the file"
        )
    try:
        return Preset(**checked(Preset, table))
    except WrongTypeError as error:
        raise ModelError(
            f"preset {path}: {error.name} must be {error.wanted}, not {error.value!r}",
            "fix the file",
        ) from None
