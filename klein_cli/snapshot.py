"""Names, folders and hub ids -> a Snapshot: a folder in the diffusers layout and its preset.

Imports no torch: a wrong name, folder or prompt is reported before anything heavy starts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from klein_cli.errors import ModelError
from klein_cli.presets import Preset, presets, unnamed_preset

PIPELINE_CLASS = "Flux2KleinPipeline"
EMBEDDED_MODEL = "tiny"

INDEX_FILE = "model_index.json"
WANTED_FILES = (
    INDEX_FILE,
    "scheduler/*.json",
    "text_encoder/*.json",
    "text_encoder/*.safetensors",
    "tokenizer/*.json",
    "tokenizer/*.jinja",
    "tokenizer/*.txt",
    "transformer/*.json",
    "transformer/*.safetensors",
    "vae/*.json",
    "vae/*.safetensors",
)
"""What is downloaded. The official repositories also hold the transformer a second time, as one
file at the top in another layout."""

_SINGLE_FILES = (".safetensors", ".ckpt", ".gguf", ".pt", ".pth", ".bin", ".sft")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A model on disk: `root` holds model_index.json and the four parts' folders.

    `repo` is its id on the hub and `revision` the commit, None for a local folder and for the
    embedded model.
    """

    name: str
    root: Path
    preset: Preset
    revision: str | None = None
    repo: str | None = None


def preset_for(model: str) -> Preset:
    """The preset of a preset name, a diffusers-layout folder or a hub id.

    A preset's name goes before a folder of that name; `./name` means the folder. Of a hub id that
    no preset knows, model_index.json is fetched. Raises ModelError when there is no such model.
    """
    if model in presets():
        return presets()[model]
    if _is_local(model):
        return _folder(model).preset
    return _hub_preset(_hub_id(model))


def resolve(model: str) -> Snapshot:
    """The model's files on disk, downloaded first when it lives on the hub.

    Raises ModelError when it is not to be had.
    """
    if model not in presets():
        if _is_local(model):
            return _folder(model)
        preset = _hub_preset(_hub_id(model))
        return _downloaded(model, preset.repo or model, preset)
    preset = presets()[model]
    if preset.repo:
        return _downloaded(model, preset.repo, preset)
    return _embedded(preset)


def already_here(name: str, revision: str | None) -> Snapshot | None:
    """A preset's model if it is on this machine already, at this commit or at its newest one.

    Nothing is downloaded and nobody asked. `revision` is a commit, in hexadecimal digits.
    """
    preset = presets()[name]
    if not preset.repo:
        return _embedded(preset)
    from huggingface_hub import try_to_load_from_cache

    for commit in [revision, None] if revision else [None]:
        found = try_to_load_from_cache(preset.repo, INDEX_FILE, revision=commit)
        if isinstance(found, str):
            root = Path(found).parent
            return Snapshot(
                name=name, root=root, preset=preset, revision=root.name, repo=preset.repo
            )
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError when the file is absent or holds anything else."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing", "the model is not complete: download it again"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "download the model again") from None
    if not isinstance(table, dict):
        raise ModelError(f"{path} does not hold a JSON object", "download the model again")
    return table


def _is_local(model: str) -> bool:
    """True where a path is meant: one that exists, or one that can be nothing else."""
    if Path(model).expanduser().exists() or model.endswith(_SINGLE_FILES):
        return True
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model


def _folder(model: str) -> Snapshot:
    root = Path(model).expanduser()
    if root.is_file() or (not root.exists() and model.endswith(_SINGLE_FILES)):
        raise ModelError(
            f"{model} is a single-file checkpoint, which klein cannot read yet",
            f"give a folder in the diffusers layout (with a {INDEX_FILE}), or a model by name",
        )
    if not root.is_dir():
        raise ModelError(f"there is no folder {model}", f"give a model by name: {_names()}")
    name = root.resolve().name or model
    return Snapshot(name=name, root=root, preset=_preset_of_folder(root, name))


def _preset_of_folder(root: Path, name: str) -> Preset:
    if not (root / INDEX_FILE).is_file():
        raise ModelError(
            f"{root} is not a snapshot: it has no {INDEX_FILE}",
            "give a folder in the diffusers layout, with text_encoder, tokenizer, transformer, vae",
        )
    index = read_json(root / INDEX_FILE)
    if index.get("_class_name") != PIPELINE_CLASS:
        raise ModelError(
            f"{root} holds a {index.get('_class_name')}, not a {PIPELINE_CLASS}",
            f"klein runs FLUX.2 [klein] only: {_names()}",
        )
    distilled = index.get("is_distilled", False)
    if not isinstance(distilled, bool):
        raise ModelError(
            f"{root / INDEX_FILE}: is_distilled is {distilled!r}, not true or false",
            "mend the file, or download the model again",
        )
    return unnamed_preset(name, distilled=distilled)


def _embedded(preset: Preset) -> Snapshot:
    root = Path(__file__).parent / EMBEDDED_MODEL
    if not (root / INDEX_FILE).is_file():
        raise ModelError(
            f"the embedded model {preset.name} is not in this installation",
            "install klein-cli again, from a wheel or a full checkout",
        )
    return Snapshot(name=preset.name, root=root, preset=preset)


def _hub_id(model: str) -> str:
    if _HUB_ID.fullmatch(model) and ".." not in model and "--" not in model:
        return model
    near = get_close_matches(model.lower(), presets(), n=1, cutoff=0.5)
    question = f"did you mean {near[0]}? " if near else ""
    raise ModelError(
        f"there is no model called {model!r}",
        f"{question}there are {_names()}; or give a folder or a hub id (owner/name)",
    )


def _hub_preset(repo: str) -> Preset:
    for preset in presets().values():
        if preset.repo.lower() == repo.lower():
            return preset
    return _preset_of_folder(_download(repo, [INDEX_FILE]), repo)


def _downloaded(name: str, repo: str, preset: Preset) -> Snapshot:
    root = _download(repo, WANTED_FILES)
    _preset_of_folder(root, name)
    return Snapshot(name=name, root=root, preset=preset, revision=root.name, repo=repo)


def _download(repo: str, patterns: Sequence[str]) -> Path:
    """The folder of a repository's files in the hub cache, fetched where they are not there yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    page = f"https://huggingface.co/{repo}"
    tiny = f"or use --model {EMBEDDED_MODEL}, which needs no download"
    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns)))
    except GatedRepoError:
        what, todo = (
            "asks for its terms to be accepted",
            f"accept them at {page}, then `hf auth login`",
        )
    except RepositoryNotFoundError:
        what, todo = (
            "is not on the hub, or is private",
            f"look at {page}, log in with `hf auth login`",
        )
    except LocalEntryNotFoundError:
        what, todo = (
            "is not on this machine and the hub cannot be reached",
            f"connect and see {page}",
        )
    except HfHubHTTPError as error:
        what, todo = f"could not be downloaded ({_first_line(error)})", f"try again, see {page}"
    except OSError as error:
        what, todo = f"could not be stored ({_first_line(error)})", "make room, or set HF_HOME"
    raise ModelError(f"{repo} {what}", f"{todo}, {tiny}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _names() -> str:
    return ", ".join(presets())
