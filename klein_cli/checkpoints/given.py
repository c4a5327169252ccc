"""Files in place of a model's own parts: what was asked for -> checked parts and their names.

`wanted` is the door: after it a model is a preset's name, a folder or a hub id, and never a file.
Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from klein_cli.checkpoints.folder import FolderCheckpoint, read_json
from klein_cli.checkpoints.gguf import rare_kinds
from klein_cli.checkpoints.identify import PART_NAMES, begins_like_a_model, contents
from klein_cli.checkpoints.models_dir import SUFFIXES, ModelsDir
from klein_cli.checkpoints.origins import preset_of_file
from klein_cli.checkpoints.single_file import OPTIONS, FileCheckpoint
from klein_cli.checkpoints.sizes import size_of_model
from klein_cli.checkpoints.source import Checkpoint
from klein_cli.errors import ModelError, UsageError
from klein_cli.paths import askable, user_path
from klein_cli.presets import DEFAULT_MODEL, presets

PICKLED = (".ckpt", ".pt", ".pth", ".bin")

SMALL_DECODER = "small"
"""A word in place of the VAE's file."""

VOCABULARY = 151669
"""Tokens of Qwen3, which every text encoder of FLUX.2 [klein] knows."""

Parts = Mapping[str, str]
"""The files, or folders, in place of a model's parts."""
NO_PARTS: Parts = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A model by name, the files in place of its parts, and what the user should hear of it."""

    model: str
    parts: Parts = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def wanted(
    model: str | None, parts: Mapping[str, str | None], models_dir: str | None = None
) -> Wanted:
    """What -m and the options for parts ask for; bare names are looked for in `models_dir`.

    Without a model the parts alone are looked at. A file for the model is one for its parts, of the
    preset that the file says. Raises ModelError for a file that is none of a model's, or not of the
    model's size, UsageError for one that is given in two ways.
    """
    name, given = model or "", {part: path for part, path in parts.items() if path is not None}
    if models_dir is not None:
        folder = ModelsDir(user_path(models_dir))
        given = {part: folder.find(path, part) for part, path in given.items()}
        name = name if name in presets() else folder.find(name, "transformer")
    for part, path in given.items():
        _check_is_there(part, path)
    found = Wanted(model=name, parts=given)
    if name not in presets() and is_file(name):
        found = _of_file(name, given)
    elif name in presets():
        for part, path in given.items():
            _check_size(name, part, path)
    return replace(found, notes=(*found.notes, *_slow(found.parts)))


def _of_file(name: str, given: Parts) -> Wanted:
    """A file in place of a model's name: the preset, with all parts that the file holds."""
    file = user_path(name)
    held = contents(file).prefixes
    twice = next((part for part in held if part in given), None)
    if twice is not None:
        raise UsageError(
            f"-m {name} holds a {PART_NAMES[twice]}, and {OPTIONS[twice]} gives another",
            "leave one of them out",
        )
    if "transformer" not in held:
        part = next(iter(held))
        raise ModelError(
            f"{name} holds a {PART_NAMES[part]}, not a whole model",
            f"give it beside a model: -m {DEFAULT_MODEL} {OPTIONS[part]} {name}",
        )
    preset, is_known = preset_of_file(file, FileCheckpoint(file, "transformer").own_config)
    note = (
        f"{file.name} is taken for {preset}: base, distilled and kv files look alike; if it is "
        f"another, say so: -m NAME --transformer {name}"
    )
    parts = {**given, **dict.fromkeys(held, name)}
    return Wanted(model=preset, parts=parts, notes=() if is_known else (note,))


def _slow(parts: Parts) -> Iterator[str]:
    """What another package unpacks, which takes its time."""
    for part, path in parts.items():
        place = user_path(path)
        kinds = rare_kinds(FileCheckpoint(place, part).tensors()) if place.is_file() else ()
        if kinds:
            yield f"{place.name} is unpacked by the package gguf, on the CPU: {', '.join(kinds)}"


def is_file(model: str | Path) -> bool:
    """Whether a path is a file to be looked at as weights, by its ending or its beginning."""
    path = user_path(model)
    if not os.path.isfile(path):
        return False
    return path.suffix.lower() in (*SUFFIXES, *PICKLED) or begins_like_a_model(path)


def given_part(path: str, part: str, like: Path | None) -> Checkpoint:
    """The part `part` in a file, a part's folder or a snapshot.

    `like` is the folder in whose place it is, if that is here. Raises ModelError when there is
    none.
    """
    place = user_path(path)
    if place.is_file():
        return FileCheckpoint(place, part, _config(like))
    for folder in (place / part, place):
        if (folder / "config.json").is_file():
            return FolderCheckpoint(folder)
    raise ModelError(
        f"{path} holds no {PART_NAMES[part]}: it has no config.json",
        "give a file, a part's folder, or a snapshot",
    )


def tokenizer_beside(path: str) -> Path | None:
    """The folder of the tokenizer that comes with a text encoder; None where there is none."""
    place = user_path(path)
    if place.is_file():
        return None
    folders = (place / "tokenizer", place, place.parent / "tokenizer")
    return next((folder for folder in folders if (folder / "tokenizer.json").is_file()), None)


def check_together(parts: Mapping[str, Checkpoint], taps: int) -> None:
    """That parts from different places fit each other, before anything is loaded.

    `taps` are the hidden states that make the text embeddings. Raises ModelError.
    """
    configs = {name: part.config() for name, part in parts.items()}
    pairs = {
        ("transformer", "text_encoder"): (
            configs["transformer"].get("joint_attention_dim"),
            taps * _number(configs["text_encoder"].get("hidden_size")),
            "channels of text embeddings",
        ),
        ("transformer", "vae"): (
            configs["transformer"].get("in_channels"),
            4 * _number(configs["vae"].get("latent_channels", 32)),
            "channels of latents",
        ),
    }
    for (one, other), (takes, makes, what) in pairs.items():
        if takes != makes:
            size = size_of_model("transformer", configs["transformer"])
            hint = f"use the parts of one size: -m klein-{size}, or -m klein-base-{size}"
            raise ModelError(
                f"{parts[one].place} takes {takes} {what}, and {parts[other].place} makes {makes}",
                hint if size else "use the parts of one model",
            )


def _check_is_there(part: str, path: str) -> None:
    if part == "vae" and path == SMALL_DECODER:
        return
    place = askable(user_path(path))
    if not path.strip() or not place.exists():
        raise ModelError(f"{OPTIONS[part]} {path}: there is no such file", "check the path")
    if place.is_file():
        FileCheckpoint(place, part).tensors()
    else:
        given_part(path, part, None)


def _check_size(name: str, part: str, path: str) -> None:
    """Raise ModelError for a part of another size than a preset's name says."""
    place = user_path(path)
    if part == "vae" or not place.is_file():
        return
    found = size_of_model(part, FileCheckpoint(place, part).own_config)
    sizes = [size for size in ("4b", "9b") if size in name.split("-")]
    if found is not None and sizes and found not in sizes:
        raise ModelError(
            f"{OPTIONS[part]} {path} is of the {found.upper()} models, not of {name}",
            f"use it with -m klein-{found} or -m klein-base-{found}",
        )


def _config(folder: Path | None) -> Mapping[str, Any] | None:
    if folder is None or not (folder / "config.json").is_file():
        return None
    return read_json(folder / "config.json")


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
