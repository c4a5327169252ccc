"""Names, folders and hub ids -> a Snapshot: a folder in the diffusers layout, its preset, and files
in place of its parts.

Imports no torch: a wrong name, folder or prompt is reported before anything heavy starts.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from klein_cli.checkpoints.folder import (
    INDEX_FILE,
    FolderCheckpoint,
    check_readable,
    is_readable,
    problems,
    read_json,
)
from klein_cli.checkpoints.given import (
    NO_PARTS,
    PICKLED,
    SMALL_DECODER,
    VOCABULARY,
    Parts,
    check_together,
    given_part,
    tokenizer_beside,
)
from klein_cli.checkpoints.hub.cache import cached, cached_file
from klein_cli.checkpoints.hub.download import Watch, download, index_of
from klein_cli.checkpoints.models_dir import SUFFIXES
from klein_cli.checkpoints.source import PARTS, Checkpoint
from klein_cli.errors import ModelError
from klein_cli.paths import check_path, hub_id, user_path
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

_SMALL_REPO = "black-forest-labs/FLUX.2-small-decoder"
_SMALL_FILE = "full_encoder_small_decoder.safetensors"

_SINGLE_FILES = (*SUFFIXES, *PICKLED)
_FOLDER_HINT = f"give a folder in the diffusers layout (with a {INDEX_FILE}), or a model by name"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A model on disk: `root` holds model_index.json and the four parts' folders.

    `repo` is its id on the hub and `revision` the commit, None for a local folder and for the
    embedded model. `given` are files and folders in place of its parts, which `root` may lack then;
    where all are given, and nothing of the model is here, `root` is the folder of one of them.
    """

    name: str
    root: Path
    preset: Preset
    revision: str | None = None
    repo: str | None = None
    given: Parts = field(default_factory=dict)

    @property
    def model(self) -> Model:
        """What an image's record calls it."""
        return Model(name=self.name, repo=self.repo, revision=self.revision)

    def part(self, name: str) -> Checkpoint:
        """One of PARTS."""
        if name in self.given:
            return given_part(self.given[name], name, self.root / name)
        return FolderCheckpoint(self.root / name)

    @property
    def tokenizer(self) -> Path | None:
        """The folder of the tokenizer of its text encoder; None for the one that klein has."""
        return _tokenizer(self.root, self.given)


def _tokenizer(root: Path, given: Parts) -> Path | None:
    if _needs_own_tokenizer(given):
        return root / "tokenizer"
    return tokenizer_beside(given["text_encoder"])


def _needs_own_tokenizer(given: Parts) -> bool:
    """Whether a model's own tokenizer is used, not that beside its text encoder, or klein's.

    Of a small model, klein's knows nothing.
    """
    encoder = given.get("text_encoder")
    if encoder is None:
        return True
    if tokenizer_beside(encoder) is not None:
        return False
    known: int = given_part(encoder, "text_encoder", None).config()["vocab_size"]
    return known < VOCABULARY


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


def resolve(model: str, watch: Watch | None = None, parts: Parts = NO_PARTS) -> Snapshot:
    """The model's files on disk, downloaded first when it lives on the hub and is not whole here.

    `parts` are in place of the model's own, which need not be here then. What is whole is not
    looked for again: `pull` does that. Raises ModelError when the model is not available, or when
    parts do not fit each other.
    """
    return on_disk(model, parts) or _pulled(model, watch, check_all=False, parts=parts)


def pull(model: str, watch: Watch | None = None) -> Snapshot:
    """The model as it is on the hub today, every file of it checked against the hub's hash.

    Raises ModelError; what was downloaded until then is kept.
    """
    if hub_repository(model) is None:
        return resolve(model)
    return _pulled(model, watch, check_all=True)


def on_disk(model: str, parts: Parts = NO_PARTS) -> Snapshot | None:
    """The model if all of it is on this machine, without asking the hub; None if it is not.

    For `parts` see `resolve`. Raises ModelError for a name that can be no model, for a folder that
    holds none, and for parts that do not fit each other.
    """
    repo = hub_repository(model)
    if repo is None:
        whole = _embedded(presets()[model]) if model in presets() else _folder(model)
        return with_parts(whole, parts)
    if parts.get("vae") == SMALL_DECODER and _small_decoder() is None:
        return None
    root = cached(repo)
    if root is None:
        return _of_files_alone(model, repo, parts)
    if problems(root, besides=_besides(parts)):
        return None
    return with_parts(_at(model, root, _hub_preset(repo), repo), parts)


def with_parts(snapshot: Snapshot, parts: Parts) -> Snapshot:
    """The model with files in place of its parts. Raises ModelError where they do not fit."""
    if not parts:
        return snapshot
    given = dict(parts)
    if given.get("vae") == SMALL_DECODER:
        given["vae"] = str(_small_decoder() or _pulled_small_decoder(None))
    changed = replace(snapshot, given=given)
    check_together({name: changed.part(name) for name in PARTS}, len(snapshot.preset.tapped_layers))
    return changed


def _of_files_alone(model: str, repo: str, parts: Parts) -> Snapshot | None:
    """A model whose parts are all given, and of which nothing else is needed."""
    known = _known(repo)
    if set(parts) < set(PARTS) or _needs_own_tokenizer(parts) or known is None:
        return None
    folder = user_path(parts["transformer"]).absolute().parent
    return with_parts(Snapshot(name=model, root=folder, preset=known, repo=repo), parts)


def _besides(parts: Parts) -> tuple[str, ...]:
    """The folders of a model that nobody needs beside these parts."""
    return (*parts, *(() if _needs_own_tokenizer(parts) else ("tokenizer",)))


def already_here(name: str, revision: str | None, parts: Parts = NO_PARTS) -> Snapshot | None:
    """A preset's model if it is whole on this machine, at this commit or else at its newest one.

    Nothing is downloaded and nobody asked. `revision` is a commit, in hexadecimal digits; for
    `parts` see `resolve`.
    """
    preset = presets()[name]
    if not preset.repo:
        return with_parts(_embedded(preset), parts)
    for commit in [revision, None] if revision else [None]:
        root = cached(preset.repo, commit)
        if root is not None and not problems(root, besides=_besides(parts)):
            return with_parts(_at(name, root, preset, preset.repo), parts)
    return _of_files_alone(name, preset.repo, parts)


def hub_repository(model: str) -> str | None:
    """The hub's id of a model; None for a folder and for the embedded one. Raises ModelError."""
    if model in presets():
        return presets()[model].repo or None
    if _is_local(model):
        return None
    preset = _known(_hub_id(model))
    return preset.repo if preset else model


def _pulled(
    model: str, watch: Watch | None, *, check_all: bool, parts: Parts = NO_PARTS
) -> Snapshot:
    repo = hub_repository(model)
    assert repo is not None
    preset = preset_for(model)
    if parts.get("vae") == SMALL_DECODER and _small_decoder() is None:
        _pulled_small_decoder(watch)
    if not set(parts) < set(PARTS) and (found := _of_files_alone(model, repo, parts)):
        return found
    besides = _besides(parts)
    wanted = [name for name in WANTED_FILES if name.partition("/")[0] not in besides]
    root = download(repo, wanted, watch=watch, check_all=check_all)
    if not check_all and problems(root, besides=besides):
        # All is there in its full size: a hash alone tells what is damaged.
        root = download(repo, wanted, watch=watch, check_all=True)
    _preset_of_folder(root, model)
    return with_parts(_at(model, root, preset, repo), parts)


def _small_decoder() -> Path | None:
    """The file, if it is on this machine."""
    return cached_file(_SMALL_REPO, _SMALL_FILE)


def _pulled_small_decoder(watch: Watch | None) -> Path:
    return download(_SMALL_REPO, [_SMALL_FILE], watch=watch, needed=_SMALL_FILE) / _SMALL_FILE


def _at(name: str, root: Path, preset: Preset, repo: str) -> Snapshot:
    """The snapshot in the hub's cache, whose folders are named by their commits."""
    return Snapshot(name=name, root=root, preset=preset, revision=root.name, repo=repo)


def _is_local(model: str) -> bool:
    """True where a path is meant: one that exists, or one that can be nothing else."""
    if not model.strip() or os.path.exists(os.path.expanduser(model)):
        return True
    if model.endswith(_SINGLE_FILES):
        return True
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model


def _folder(model: str) -> Snapshot:
    if repo := hub_id(model):
        raise ModelError(f"-m {model} is an address", f"give the hub id alone: {repo}")
    check_path("-m", model)
    root = user_path(model)
    if not model.strip():
        raise ModelError("-m is empty", f"give a model by name ({_names()}), a folder or a hub id")
    if os.path.isfile(root) and not model.endswith(_SINGLE_FILES):
        raise ModelError(f"{model} is a file, not a model", _FOLDER_HINT)
    if model.endswith(_SINGLE_FILES) and not os.path.isdir(root):
        if not os.path.isfile(root):
            raise ModelError(f"there is no file {model}", "check the path")
        raise ModelError(
            f"{model} is one file, not a whole model",
            "klein generate takes it, as -m or --transformer; give a model by name or a folder",
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
