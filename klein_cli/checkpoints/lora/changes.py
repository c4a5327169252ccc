"""Adapters and their weights -> the changes of a model's tensors, made as their rows arrive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from klein_cli.checkpoints.load import Change, read_tensor
from klein_cli.checkpoints.lora.adapter import AdapterFile
from klein_cli.checkpoints.lora.deltas import Delta
from klein_cli.checkpoints.lora.targets import Target
from klein_cli.checkpoints.source import Checkpoint

Base = Callable[[str], Tensor]
"""All rows of one of the model's own tensors, by its official name, in float32 on any device."""

Shapes = Mapping[str, tuple[int, ...]]


def changes_of(
    adapters: Sequence[tuple[AdapterFile, float]], shapes: Shapes, base: Base
) -> dict[str, Change]:
    """What adapters, one after another and each with its weight, do to a transformer's tensors.

    They fit the `shapes`, which are those of the tensors by their official names: see
    `adapter.check_fit`. One of weight 0 does nothing at all, so that the model is its own, bit for
    bit. Changes come in float32 and are rounded by whoever keeps them: once, for all adapters.
    """
    steps: dict[str, list[_Step]] = {}
    for file, weight in adapters:
        if weight == 0:
            continue
        for layer in file.layers:
            delta = Delta(file, layer, weight)
            rows = _rows_of(layer.target, shapes)
            for name in rows:
                before = {other: tuple(steps.get(other, ())) for other in rows}
                whole = _Whole(layer.target, rows, before, base)
                steps.setdefault(name, []).append(_Step(delta, layer.target, rows[name], whole))
    return {name: _Changed(tuple(made)) for name, made in steps.items()}


def changes_to(
    checkpoint: Checkpoint, adapters: Sequence[tuple[AdapterFile, float]]
) -> dict[str, Change]:
    """`changes_of` for the transformer in a checkpoint, whose tensors are read where need be."""
    if not adapters:
        return {}
    tensors = checkpoint.tensors()
    shapes = {name: held.shape for name, held in tensors.items()}
    return changes_of(adapters, shapes, lambda name: read_tensor(tensors[name]))


@dataclass(frozen=True, slots=True)
class _Changed:
    """A `Change`: steps that are taken one after another."""

    steps: tuple[_Step, ...]

    def __call__(self, first: int, rows: Tensor) -> Tensor:
        for step in self.steps:
            rows = step.apply(first, rows)
        return rows


@dataclass(frozen=True, slots=True)
class _Rows:
    """Where a tensor's rows lie in a layer that changes several: from `first` on, of `of` in all.

    Its own are `count`; where the layer has a share of them, those from `low` to `high`.
    """

    first: int
    count: int
    of: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class _Whole:
    """All rows of a layer as they are before it changes them: its tensors one below the other."""

    target: Target
    rows: Mapping[str, _Rows]
    before: Mapping[str, tuple[_Step, ...]]
    base: Base

    def __call__(self) -> Tensor:
        parts = []
        for name, place in self.rows.items():
            found = _Changed(self.before[name])(0, self.base(name).float().clone())
            parts.append(found[place.low : place.high])
        return _swapped(torch.cat(parts)) if self.target.swapped else torch.cat(parts)


@dataclass(frozen=True, slots=True)
class _Step:
    """What one layer of an adapter does to one tensor."""

    delta: Delta
    target: Target
    place: _Rows
    whole: _Whole

    def apply(self, first: int, rows: Tensor) -> Tensor:
        """The tensor's rows from `first` on, changed."""
        place, last = self.place, first + rows.shape[0]
        if not self.target.swapped:
            low, high = max(first, place.low), min(last, place.high)
            pieces = [(low, high, place.first + low - place.low)]
        else:
            half = place.of // 2
            edges = [(0, half, half), (half, place.of, 0)]
            pieces = [
                (max(first, begin), min(last, end), other + max(first, begin) - begin)
                for begin, end, other in edges
            ]
        for low, high, at in pieces:
            if low < high:
                mine = rows[low - first : high - first]
                mine.copy_(self.delta.apply(mine, at, self.whole))
        return rows


def _rows_of(target: Target, shapes: Shapes) -> dict[str, _Rows]:
    """Where the rows of a layer's tensors lie in it, by the tensors' official names."""
    names = [f"{module}.weight" for module in target.modules]
    of = sum(shapes[name][0] for name in names)
    found, first = {}, 0
    for name in names:
        count = shapes[name][0]
        begin, end, parts = target.share or (0, 1, 1)
        low, high = count * begin // parts, count * end // parts
        found[name] = _Rows(first, count, of, low, high)
        first += high - low
    return found


def _swapped(rows: Tensor) -> Tensor:
    """The two halves of the rows in the other order."""
    return torch.cat(rows.chunk(2)[::-1])
