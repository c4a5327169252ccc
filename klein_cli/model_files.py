"""The files of a model on disk: read, found, and judged whole without loading a weight.

Imports no torch: `klein models` and `klein doctor` look at sixteen gigabytes in milliseconds, by
the headers of the safetensors alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from klein_cli.errors import ModelError

INDEX_FILE = "model_index.json"
WEIGHT_FOLDERS = ("text_encoder", "transformer", "vae")

_STEMS = ("model", "diffusion_pytorch_model")
"""What transformers and diffusers call a part's weights."""

_NEEDED = (
    INDEX_FILE,
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    *(f"{folder}/config.json" for folder in WEIGHT_FOLDERS),
)
_AGAIN = "the model is damaged or not complete: download it again"
_LONGEST_HEADER = 100_000_000
_CHUNK = 2**22


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
    for stem in _STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return _shards(index)
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    pickled = [p.name for p in sorted(folder.glob("*")) if p.suffix in (".bin", ".pt", ".pth")]
    if pickled:
        raise ModelError(
            f"{folder} holds {pickled[0]} but no safetensors",
            "klein never opens pickled weights: get the model as safetensors",
        )
    names = " or ".join(f"{stem}.safetensors" for stem in _STEMS)
    raise ModelError(f"{folder} holds no weights: there is no {names}", _AGAIN)


def faults(root: Path) -> list[str]:
    """What is wrong with the files of the model in `root`, each in a line; [] when it is whole.

    Sees what is missing, cut short or not readable, and tensors that an index promises and no file
    holds. It does not see a flipped bit: that takes `digest`.
    """
    found = [f"{name} is missing" for name in _NEEDED if not (root / name).is_file()]
    for name in _NEEDED:
        if (root / name).is_file():
            found += _complaints(partial(read_json, root / name))
    for folder in WEIGHT_FOLDERS:
        if (root / folder).is_dir():
            found += _complaints(partial(_check_part, root / folder))
    return [fault.replace(f"{root}/", "") for fault in found]


def tensors_of(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: tensor names and what it says of them.

    Raises ModelError when the file is not whole: its length must be what its header promises.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise ModelError(f"{path} is no safetensors file, or was cut short", _AGAIN)
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            wanted = 8 + length + int(end)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise ModelError(f"{path} has a broken header", _AGAIN) from None
    if size != wanted:
        raise ModelError(f"{path} is {size:,} bytes long, not {wanted:,}", _AGAIN)
    return dict(header)


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
    held: set[str] = set()
    for path in weight_files(folder):
        held |= tensors_of(path).keys()
    for stem in _STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            lacking = sorted(read_json(index)["weight_map"].keys() - held)
            if lacking:
                raise ModelError(f"{index} names {lacking[0]}, which no file holds", _AGAIN)
            return


def _shards(index: Path) -> list[Path]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ModelError(f"{index} has no weight_map of file names", _AGAIN)
    names = sorted(set(where.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name:
            raise ModelError(
                f"{index} names a file outside its folder: {name}",
                "do not trust this model; get it from its own page",
            )
    for name in names:
        if not (index.parent / name).is_file():
            raise ModelError(
                f"{index.parent / name} is missing, though {index.name} names it", _AGAIN
            )
    return [index.parent / name for name in names]
