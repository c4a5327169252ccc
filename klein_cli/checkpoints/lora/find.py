"""--lora and a row's `lora`: what is written -> a file on this machine, and its weight.

An adapter on the hub is downloaded when it is not here; what is here is not looked for again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

from klein_cli.checkpoints.hub.cache import snapshot_root
from klein_cli.checkpoints.hub.download import Watch, fetch
from klein_cli.checkpoints.hub.repository import Listing, listing_of
from klein_cli.checkpoints.identify import begins_like_a_model
from klein_cli.checkpoints.lora.alphas import CONFIG_FILE
from klein_cli.errors import UsageError
from klein_cli.paths import askable, user_path

ENDING = ".safetensors"
HOW = "write a file (style.safetensors=0.8) or a place on the hub (owner/name/style.safetensors)"

_ON_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?P<file>[^/].*))?")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_USUAL = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")


Downloading = Callable[[], AbstractContextManager[Watch | None]]


class Wanted(NamedTuple):
    """An adapter as it is written: a file, a folder or a place on the hub, and its weight, None
    where none is written.
    """

    source: str
    weight: float | None = None


def parsed(text: str) -> Wanted:
    """SOURCE or SOURCE=WEIGHT. Raises UsageError for what cannot be either."""
    source, equals, number = text.rpartition("=")
    try:
        weight = float(number) if equals else None
    except ValueError:
        # A name may hold an equals sign.
        equals, weight = "", None
    if not equals:
        source = text
    if not source.strip() or "\0" in source:
        raise UsageError(f"--lora {text!r} names no file", HOW)
    if weight is not None and not math.isfinite(weight):
        raise UsageError(f"the weight of {source} is {number}", "use a number, such as 0.8")
    return Wanted(source, weight)


def located(source: str, folder: Path, downloading: Downloading = nullcontext) -> Path:
    """The file of an adapter, looked for from `folder` on and then on the hub.

    `downloading` shows who watches a download.

    Raises UsageError when there is none, or several; ModelError when the hub does not give it.
    """
    path = askable(folder / user_path(source))
    if path.is_file():
        return _checked(path)
    if path.is_dir():
        return _only(source, _adapters_in(path))
    found = _ON_HUB.fullmatch(source)
    if found is None or ".." in source or _is_path(source, found["file"]):
        raise UsageError(f"there is no adapter {path}", HOW)
    return _from_hub(found["repo"], found["file"], downloading)


def _checked(path: Path) -> Path:
    if path.suffix.lower() in _PICKLED and not begins_like_a_model(path):
        raise UsageError(
            f"{path} is pickled, which klein never opens", "get the adapter as safetensors"
        )
    return path


def _is_path(source: str, file: str | None) -> bool:
    """Whether a file on this machine is meant, for all that is seen: "loras/style.safetensors"."""
    return file is None and source.endswith(ENDING)


def _adapters_in(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob(f"*{ENDING}"))]


def _only(source: str, files: Iterable[str]) -> Path:
    """The one file of several that is meant, if that is clear."""
    files = list(files)
    usual = [file for file in files if Path(file).name in _USUAL]
    found = usual if len(usual) == 1 else files
    if len(found) == 1:
        return Path(found[0])
    if not found:
        raise UsageError(f"{source} holds no {ENDING} file", HOW)
    names = ", ".join(Path(file).name for file in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    raise UsageError(
        f"{source} holds {len(found)} files: {names}{more}",
        f"name one: {source.rstrip('/')}/{Path(found[0]).name}",
    )


def _from_hub(repo: str, file: str | None, downloading: Downloading) -> Path:
    root = snapshot_root(repo)
    if root is not None:
        if file is not None and (root / file).is_file():
            return _checked(root / file)
        if file is None and len(here := _adapters_in(root)) == 1:
            return Path(here[0])
    listed = listing_of(repo, lambda path: path.endswith((ENDING, CONFIG_FILE)))
    files = [each.path for each in listed.files if each.path.endswith(ENDING)]
    if file is not None and file not in files:
        raise UsageError(f"{repo} has no file {file}", f"see https://huggingface.co/{repo}")
    top = [each for each in files if "/" not in each]
    chosen = file or str(_only(repo, top))
    needed = (chosen, str(Path(chosen).parent / CONFIG_FILE))
    wanted = tuple(each for each in listed.files if each.path in needed)
    with downloading() as watch:
        return fetch(Listing(repo=repo, commit=listed.commit, files=wanted), watch=watch) / chosen
