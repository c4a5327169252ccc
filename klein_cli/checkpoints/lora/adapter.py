"""An adapter's file, read and judged by its header: what it changes, and whether it fits a model.

Imports no torch: what does not fit is refused before a GPU has done anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from klein_cli.checkpoints.folder import digest
from klein_cli.checkpoints.header import Header
from klein_cli.checkpoints.identify import is_adapter, read_any_header
from klein_cli.checkpoints.lora import keys
from klein_cli.checkpoints.lora.alphas import read_strengths
from klein_cli.checkpoints.lora.bases import (
    DEV,
    FAMILY,
    FLUX1,
    KLEIN_4B,
    KLEIN_9B,
    Base,
    base_by_name,
    base_of,
)
from klein_cli.checkpoints.lora.layers import NOT_WHOLE, Layer, layer_of, sides
from klein_cli.checkpoints.lora.targets import Target, block_of, target_of
from klein_cli.checkpoints.source import DAMAGED, Stored, stamp_of
from klein_cli.errors import ModelError
from klein_cli.recipe import Adapter

MOST_TENSORS = 50_000
"""Many times what an adapter of the largest model holds."""

_FOR_KLEIN = f"get an adapter that was trained for {FAMILY}"
_OTHER = "klein reads LoRA, LoHa, LoKr, DoRA and full differences: get it as one of these"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """A whole adapter. `sha256` is of its file's bytes; `stamp` its size and time of change."""

    path: Path
    sha256: str
    stamp: tuple[int, int]
    layers: tuple[Layer, ...]
    metadata: Mapping[str, Any]
    base: Base

    @property
    def name(self) -> str:
        """The file's, without folders."""
        return self.path.name

    def weighing(self, weight: float) -> Adapter:
        """What a recipe says of it. Raises UsageError for a weight that is out of range."""
        return Adapter(sha256=self.sha256, name=self.name, weight=weight)

    @property
    def modules(self) -> list[str]:
        """The official modules that it changes, each once."""
        changed = chain.from_iterable(layer.target.modules for layer in self.layers)
        return list(dict.fromkeys(changed))

    @property
    def kinds(self) -> str:
        """What it is, in words: "LoRA of rank 16"."""
        kinds = dict.fromkeys(layer.kind for layer in self.layers)
        ranks = sorted({one.rank for layer in self.layers for one in layer.factors if one.rank})
        if not ranks:
            return ", ".join(kinds)
        least, most = ranks[0], ranks[-1]
        return f"{', '.join(kinds)} of rank {least if least == most else f'{least} to {most}'}"

    @property
    def doubt(self) -> str | None:
        """What cannot be told of the file, for the user to know."""
        if self.base.certain:
            return None
        return (
            f"{self.name} changes nothing that tells {KLEIN_4B} from {FLUX1}: if it was trained "
            f"for {FLUX1}, the images are wrong"
        )


def read_adapter(path: Path) -> AdapterFile:
    """The adapter in a safetensors file.

    Raises ModelError, in which the file is named, when it cannot be read, is no adapter, holds
    anything that would not be used, or was trained for another family of models.
    """
    tensors, metadata = read_adapter_header(path)
    if not is_adapter(tensors):
        raise ModelError(f"{path} is not an adapter: it holds no LoRA or the like", _OTHER)
    if len(tensors) > MOST_TENSORS:
        raise ModelError(f"{path} holds {len(tensors):,} tensors, too many for an adapter", _OTHER)
    strengths = read_strengths(path, metadata)
    layers = tuple(
        layer_of(path, found.path, found.target, found.tensors, strengths)
        for found in _by_layer(path, tensors)
    )
    _check_apart(path, layers)
    base = base_of(layers, metadata)
    if base.name in (FLUX1, DEV):
        raise _for_another(path, base.name)
    return AdapterFile(
        path=path,
        sha256=digest(path),
        stamp=stamp_of(path),
        layers=layers,
        metadata=metadata,
        base=base,
    )


def read_adapter_header(path: Path) -> Header:
    """What a file holds and what it says of itself. Raises ModelError when it is not whole."""
    try:
        header = read_any_header(path)
    except ModelError as error:
        hint = NOT_WHOLE if error.hint == DAMAGED else error.hint
        raise ModelError(error.message, hint) from None
    if any(held.packing for held in header.tensors.values()):
        raise ModelError(f"{path} is a GGUF, which adapters are not read from", _OTHER)
    return header


def check_size(adapter: AdapterFile, preset: str) -> None:
    """Raise ModelError for an adapter of the other size than a preset's name says.

    So that no model is downloaded in vain: `check_fit` sees everything else.
    """
    sizes = {"4b": KLEIN_4B, "9b": KLEIN_9B}
    named = [base for size, base in sizes.items() if size in preset.split("-")]
    if named and adapter.base.name in sizes.values() and adapter.base.name not in named:
        raise _of_another_size(adapter, preset)


def check_fit(adapter: AdapterFile, shapes: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Raise ModelError unless all that the adapter changes is in a transformer, in its size.

    `shapes` are those of the transformer's tensors by their official names; `model` is its name.
    """
    for layer in adapter.layers:
        absent = [module for module in layer.target.modules if f"{module}.weight" not in shapes]
        if absent:
            raise _absent(adapter, absent[0], shapes, model)
        wanted = expected_shape(layer.target, shapes)
        if layer.shape == wanted:
            continue
        if adapter.base.name is not None and layer.shape[1:] != wanted[1:]:
            raise _of_another_size(adapter, model)
        raise ModelError(
            f"{adapter.path}: {layer.path} is {sides(layer.shape)}, and in {model} {sides(wanted)}",
            _FOR_KLEIN,
        )


def expected_shape(target: Target, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The size of the change of a layer of a model."""
    found = [shapes[f"{module}.weight"] for module in target.modules]
    rows = sum(shape[0] for shape in found)
    if target.share is not None:
        first, last, of = target.share
        rows = rows * last // of - rows * first // of
    return (rows, *found[0][1:])


def coverage(adapter: AdapterFile, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """How much of a model it changes, in words: "80 of 109 layers"."""
    layers = [name for name, shape in shapes.items() if len(shape) == 2]
    changed = [module for module in adapter.modules if f"{module}.weight" in layers]
    norms = len(adapter.modules) - len(changed)
    also = f" and {norms} norms" if norms else ""
    return f"{len(changed)} of {len(layers)} layers{also}"


class _Found(NamedTuple):
    """A layer by its name in the file, and its tensors so far."""

    path: str
    target: Target
    tensors: dict[keys.Key, Stored]


def _by_layer(path: Path, tensors: Mapping[str, Stored]) -> list[_Found]:
    """The tensors of each layer. Every one of them is some layer's, or refused."""
    found: dict[str, _Found] = {}
    for name, held in tensors.items():
        key = keys.parsed(name)
        target = target_of(key.path) if key else None
        if key is None or target is None:
            raise _unknown(path, name, tensors)
        layer = found.setdefault(key.path.replace(".", "_"), _Found(key.path, target, {}))
        key = key._replace(path=layer.path)
        if key in layer.tensors:
            raise ModelError(f"{path} holds {_shown(name)} twice, under two names", NOT_WHOLE)
        layer.tensors[key] = held
    return list(found.values())


def _unknown(path: Path, name: str, names: Iterable[str]) -> ModelError:
    """Why nothing can be done with a tensor: the other names may tell what the file is."""
    paths = [key.path for each in names if (key := keys.parsed(each))]
    bases = {base for each in paths if (base := base_by_name(each))}
    if bases:
        return _for_another(path, FLUX1 if FLUX1 in bases else DEV)
    if keys.is_of_text_encoder(name):
        return ModelError(
            f"{path} changes a text encoder ({_shown(name)}), which klein does not do",
            "get the adapter for the transformer alone",
        )
    kind = keys.other_kind(name)
    if kind is not None:
        return ModelError(f"{path} is an adapter of the kind {kind}", _OTHER)
    return ModelError(f"{path} holds {_shown(name)}, which is of no layer of {FAMILY}", _FOR_KLEIN)


def _check_apart(path: Path, layers: tuple[Layer, ...]) -> None:
    """Raise ModelError when two layers of a file change the same rows."""
    changed: dict[str, list[Layer]] = {}
    for layer in layers:
        for module in layer.target.modules:
            for other in changed.setdefault(module, []):
                shares = layer.target.share, other.target.share
                if None in shares or shares[0] == shares[1]:
                    raise ModelError(
                        f"{path} changes {module} twice, as {other.path} and as {layer.path}",
                        NOT_WHOLE,
                    )
            changed[module].append(layer)


def _absent(
    adapter: AdapterFile, module: str, shapes: Mapping[str, tuple[int, ...]], model: str
) -> ModelError:
    place = block_of(module)
    if place is None:
        return ModelError(f"{adapter.path} changes {module}, which {model} lacks", _FOR_KLEIN)
    blocks = {found for name in shapes if (found := block_of(name)) and found[0] == place[0]}
    return ModelError(
        f"{adapter.path} changes {place[0]}.{place[1]}, and {model} has {len(blocks)} of these",
        "the adapter is for a larger model, or for FLUX.1: " + _FOR_KLEIN,
    )


def _of_another_size(adapter: AdapterFile, model: str) -> ModelError:
    return ModelError(
        f"{adapter.path} is an adapter for {adapter.base.name}: {model} is another size",
        "give the model that it was trained for with -m, or another adapter",
    )


def _for_another(path: Path, base: str) -> ModelError:
    return ModelError(f"{path} is an adapter for {base}, not for {FAMILY}", _FOR_KLEIN)


def _shown(name: str) -> str:
    """A stranger's word in one short line."""
    plain = name[:80].encode("unicode_escape").decode("ascii")
    return plain if len(name) <= 80 else f"{plain}..."
