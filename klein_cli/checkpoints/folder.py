"""A model in the official layout, a folder for each part: read, found, and judged whole without
loading a weight.

Imports no torch: `klein models` and `klein doctor` look at sixteen gigabytes in milliseconds, by
the headers of the safetensors alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from klein_cli.checkpoints.header import read_header
from klein_cli.checkpoints.kinds import packed
from klein_cli.checkpoints.source import DAMAGED, PARTS, Stored
from klein_cli.errors import ModelError
from klein_cli.tables import shortened

INDEX_FILE = "model_index.json"

_INDEX = ".safetensors.index.json"
_WEIGHTS = (
    "model.safetensors",
    f"model{_INDEX}",
    f"diffusion_pytorch_model{_INDEX}",
    "diffusion_pytorch_model.safetensors",
)
"""A part's weights by the first of these: transformers looks for one file before an index, and
diffusers the other way about. A fine-tune saved over shards leaves their index beside its file."""

_NEEDED = (
    INDEX_FILE,
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    *(f"{folder}/config.json" for folder in PARTS),
)
_CHUNK = 2**22


class FolderCheckpoint:
    """See `source.Checkpoint`: a folder with a config.json and safetensors, in one file or shards.

    Official names are those that diffusers and transformers write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def place(self) -> str:
        return str(self._folder)

    @property
    def files(self) -> list[Path]:
        return weight_files(self._folder)

    def written_config(self) -> bytes:
        return read_bytes(self._folder / "config.json")

    def config(self) -> dict[str, Any]:
        return read_json(self._folder / "config.json")

    def tensors(self) -> Mapping[str, Stored]:
        headers = [read_header(path) for path in self.files]
        held = {name: one for header in headers for name, one in header.tensors.items()}
        said = {key: value for header in headers for key, value in header.metadata.items()}
        return packed(held, said, self.place)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError when the file is absent or holds anything else."""
    try:
        table = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "download the model again") from None
    if not isinstance(table, dict):
        raise ModelError(f"{path} does not hold a JSON object", "download the model again")
    return table


def read_text(path: Path) -> str:
    """A file's text. Raises ModelError when it is absent, cannot be read or is not in UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing", "the model is not complete: download it again"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "download the model again") from None


def read_bytes(path: Path) -> bytes:
    """All of a file. Raises ModelError when it is absent or cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}", DAMAGED) from None


def is_readable(path: Path) -> bool:
    """Whether `path` holds a JSON object."""
    try:
        read_json(path)
    except ModelError:
        return False
    return True


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a part: one, or the shards that an index names.

    Raises ModelError when there are none, or when one is absent or lies outside the folder.
    """
    found = _weights(folder)
    if found is not None:
        return _shards(found) if found.name.endswith(_INDEX) else [found]
    pickled = [p.name for p in sorted(folder.glob("*")) if p.suffix in (".bin", ".pt", ".pth")]
    if pickled:
        raise ModelError(
            f"{folder} holds {pickled[0]} but no safetensors",
            "klein never opens pickled weights: get the model as safetensors",
        )
    names = " or ".join(name for name in _WEIGHTS if not name.endswith(_INDEX))
    raise ModelError(f"{folder} holds no weights: there is no {names}", DAMAGED)


def check_readable(root: Path) -> None:
    """Raise ModelError for a model's folder, or one of a part in it, that may not be read."""
    for folder in (root, *(root / part for part in PARTS)):
        try:
            os.scandir(folder).close()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ModelError(
                f"{shortened(str(folder), 300)} cannot be read: {error.strerror or error}",
                "look at its permissions, or give another folder",
            ) from None


def problems(root: Path, besides: Collection[str] = ()) -> list[str]:
    """What is wrong with the files of the model in `root`, each in a line; [] when it is whole.

    What lies in the folders `besides` is not looked at.

    Sees what is missing, cut short or not readable, and tensors that an index promises and no file
    holds. It does not see a flipped bit: that takes `digest`.
    """
    found = list(_complaints(partial(check_readable, root)))
    needed = [name for name in _NEEDED if name.partition("/")[0] not in besides]
    found += [f"{name} is missing" for name in needed if not os.path.isfile(root / name)]
    for name in needed:
        if os.path.isfile(root / name):
            found += _complaints(partial(read_json, root / name))
    for folder in PARTS:
        if folder not in besides and os.path.isdir(root / folder):
            found += _complaints(partial(_check_part, root / folder))
    return [fault.replace(f"{root}/", "") for fault in found]


def size_on_disk(root: Path) -> int:
    """Bytes of all files under `root`, links followed."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def digest(path: Path, *, git: bool = False, on_bytes: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file in hex; with `git` the SHA-1 of git's blob of it.

    The hub names large files by the one and small ones by the other.
    """
    # SHA-1 is git's choice, and guards against accidents only.
    hasher = hashlib.sha1(usedforsecurity=False) if git else hashlib.sha256()
    if git:
        hasher.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
            if on_bytes:
                on_bytes(len(chunk))
    return hasher.hexdigest()


def _complaints(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except ModelError as error:
        yield error.message
    except OSError as error:
        yield str(error)


def _check_part(folder: Path) -> None:
    """Raise ModelError unless the weights in `folder` are whole and all that the index names."""
    held = FolderCheckpoint(folder).tensors()
    found = _weights(folder)
    if found is not None and found.name.endswith(_INDEX):
        lacking = sorted(read_json(found)["weight_map"].keys() - held.keys())
        if lacking:
            raise ModelError(f"{found} names {lacking[0]}, which no file holds", DAMAGED)


def _weights(folder: Path) -> Path | None:
    """The file that says what a part's weights are: the weights themselves, or an index."""
    candidates = (folder / name for name in _WEIGHTS)
    return next((path for path in candidates if path.is_file()), None)


def _shards(index: Path) -> list[Path]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ModelError(f"{index} has no weight_map of file names", DAMAGED)
    names = sorted(set(where.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name:
            raise ModelError(
                f"{index} names a file outside its folder: {name}",
                "do not trust this model; get it from its own page",
            )
    paths = [index.parent / name for name in names]
    try:
        missing = [path for path in paths if not path.is_file()]
    except OSError as error:  # a name too long, for one
        raise ModelError(f"{index} names an invalid file: {error.strerror}", DAMAGED) from None
    if missing:
        raise ModelError(f"{missing[0]} is missing, though {index.name} names it", DAMAGED)
    return paths


def free_space(folder: Path) -> int:
    """Bytes free on the disk that `folder` is on, or will be on when it is made."""
    candidates = (folder, *folder.absolute().parents)
    return shutil.disk_usage(next(place for place in candidates if os.path.exists(place))).free
