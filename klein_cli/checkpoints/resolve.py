"""Names, folders and hub ids -> a Snapshot: a folder in the diffusers layout and its preset.

Imports no torch: a wrong name, folder or prompt is reported before anything heavy starts.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from klein_cli.addresses import check_path, hub_id
from klein_cli.checkpoints.folder import (
    INDEX_FILE,
    FolderCheckpoint,
    check_readable,
    is_readable,
    problems,
    read_json,
)
from klein_cli.checkpoints.hub.cache import cached
from klein_cli.checkpoints.hub.download import Watch, download, index_of
from klein_cli.checkpoints.source import PARTS, Checkpoint
from klein_cli.errors import ModelError
from klein_cli.presets import Preset, presets, unnamed_preset
from klein_cli.recipe import Model

PIPELINE_CLASS = "Flux2KleinPipeline"
KV_PIPELINE_CLASS = "Flux2KleinKVPipeline"
EMBEDDED_MODEL = "tiny"

_STEMS = ("model", "diffusion_pytorch_model")
"""What weights are called, as `model_files.weight_files` looks for them."""

WANTED_FILES = (
    INDEX_FILE,
    "scheduler/*.json",
    "tokenizer/*.json",
    "tokenizer/*.jinja",
    "tokenizer/*.txt",
    *(f"{folder}/*.json" for folder in PARTS),
    *(
        f"{folder}/{stem}{end}"
        for folder in PARTS
        for stem in _STEMS
        for end in (".safetensors", "-*-of-*.safetensors", ".safetensors.index.json")
    ),
)
"""What is downloaded, as `hub.repository.matches` reads it. The official repositories also hold the
transformer a second time, as one file at the top in another layout; others have variants of their
weights, as `model.fp16.safetensors`, which nothing reads."""

_CHECKPOINTS = (FolderCheckpoint,)
"""What may hold a part: the first that recognises its path reads it."""

_SINGLE_FILES = (".safetensors", ".ckpt", ".gguf", ".pt", ".pth", ".bin", ".sft")
_FOLDER_HINT = f"give a folder in the diffusers layout (with a {INDEX_FILE}), or a model by name"
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

    @property
    def model(self) -> Model:
        """What an image's record calls it."""
        return Model(name=self.name, repo=self.repo, revision=self.revision)

    def part(self, name: str) -> Checkpoint:
        """One of PARTS."""
        path = self.root / name
        kind = next(kind for kind in _CHECKPOINTS if kind.recognises(path))
        return kind(path)


def preset_for(model: str) -> Preset:
    """The preset of a preset name, a diffusers-layout folder or a hub id.

    A preset's name takes precedence over a folder of that name; `./name` means the folder. Of a
    hub id that no preset knows, model_index.json is fetched if it cannot be read here. Raises
    ModelError when there is no such model.
    """
    if model in presets():
        return presets()[model]
    if _is_local(model):
        return _folder(model).preset
    return _hub_preset(_hub_id(model))


def resolve(model: str, watch: Watch | None = None) -> Snapshot:
    """The model's files on disk, downloaded first when it lives on the hub and is not whole here.

    What is whole is not looked for again: `pull` does that. Raises ModelError when the model is
    not available.
    """
    return on_disk(model) or _pulled(model, watch, check_all=False)


def pull(model: str, watch: Watch | None = None) -> Snapshot:
    """The model as it is on the hub today, every file of it checked against the hub's hash.

    Raises ModelError; what was downloaded until then is kept.
    """
    if hub_repository(model) is None:
        return resolve(model)
    return _pulled(model, watch, check_all=True)


def on_disk(model: str) -> Snapshot | None:
    """The model if all of it is on this machine, without asking the hub; None if it is not.

    Raises ModelError for a name that can be no model, and for a folder that holds none.
    """
    repo = hub_repository(model)
    if repo is None:
        return _embedded(presets()[model]) if model in presets() else _folder(model)
    root = cached(repo)
    if root is None or problems(root):
        return None
    return _at(model, root, _hub_preset(repo), repo)


def already_here(name: str, revision: str | None) -> Snapshot | None:
    """A preset's model if it is whole on this machine, at this commit or else at its newest one.

    Nothing is downloaded and nobody asked. `revision` is a commit, in hexadecimal digits.
    """
    preset = presets()[name]
    if not preset.repo:
        return _embedded(preset)
    for commit in [revision, None] if revision else [None]:
        root = cached(preset.repo, commit)
        if root is not None and not problems(root):
            return _at(name, root, preset, preset.repo)
    return None


def hub_repository(model: str) -> str | None:
    """The hub's id of a model; None for a folder and for the embedded one. Raises ModelError."""
    if model in presets():
        return presets()[model].repo or None
    if _is_local(model):
        return None
    preset = _known(_hub_id(model))
    return preset.repo if preset else model


def _pulled(model: str, watch: Watch | None, *, check_all: bool) -> Snapshot:
    repo = hub_repository(model)
    assert repo is not None
    preset = preset_for(model)
    root = download(repo, WANTED_FILES, watch=watch, check_all=check_all)
    if not check_all and problems(root):
        # All is there in its full size: a hash alone tells what is damaged.
        root = download(repo, WANTED_FILES, watch=watch, check_all=True)
    _preset_of_folder(root, model)
    return _at(model, root, preset, repo)


def _at(name: str, root: Path, preset: Preset, repo: str) -> Snapshot:
    """The snapshot in the hub's cache, whose folders are named by their commits."""
    return Snapshot(name=name, root=root, preset=preset, revision=root.name, repo=repo)


def _is_local(model: str) -> bool:
    """True where a path is meant: one that exists, or one that can be nothing else."""
    if os.path.exists(os.path.expanduser(model)) or model.endswith(_SINGLE_FILES):
        return True
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model


def _folder(model: str) -> Snapshot:
    if repo := hub_id(model):
        raise ModelError(f"-m {model} is an address", f"give the hub id alone: {repo}")
    check_path("-m", model)
    root = Path(os.path.expanduser(model))
    if not model.strip():
        raise ModelError("-m is empty", f"give a model by name ({_names()}), a folder or a hub id")
    if os.path.isfile(root) and not model.endswith(_SINGLE_FILES):
        raise ModelError(f"{model} is a file, not a model", _FOLDER_HINT)
    if model.endswith(_SINGLE_FILES) and not os.path.isdir(root):
        raise ModelError(
            f"{model} is a single-file checkpoint, which klein cannot read yet",
            _FOLDER_HINT,
        )
    check_readable(root)
    if not os.path.isdir(root):
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
    kv_cache = index.get("_class_name") == KV_PIPELINE_CLASS
    if not kv_cache and index.get("_class_name") != PIPELINE_CLASS:
        raise ModelError(
            f"{root} holds a {index.get('_class_name')}, not a {PIPELINE_CLASS}",
            f"klein runs FLUX.2 [klein] only: {_names()}",
        )
    distilled = index.get("is_distilled", kv_cache)
    if not isinstance(distilled, bool):
        raise ModelError(
            f"{root / INDEX_FILE}: is_distilled is {distilled!r}, not true or false",
            "fix the file, or download the model again",
        )
    return unnamed_preset(name, distilled=distilled, kv_cache=kv_cache)


def _embedded(preset: Preset) -> Snapshot:
    root = Path(__file__).parents[1] / EMBEDDED_MODEL
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
    return _known(repo) or _preset_of_folder(_root_with_index(repo), repo)


def _root_with_index(repo: str) -> Path:
    root = cached(repo)
    return root if root and is_readable(root / INDEX_FILE) else index_of(repo)


def _known(repo: str) -> Preset | None:
    alike = (preset for preset in presets().values() if preset.repo.lower() == repo.lower())
    return next(alike, None)


def _names() -> str:
    return ", ".join(presets())
