"""Matrix products of one input as one: the weights of q, k and v side by side in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klein_cli.models.layers import ParallelLinears


class PackedLinear(nn.Module):
    """What `ParallelLinears` does, in one matrix product. See `checkpoints.slots.Packed`.

    `holds` names the layers' weights, which are rows of the one weight here.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.holds = rows_of(weights)
        self._sizes = [weight.shape[0] for weight in weights.values()]
        first = next(iter(weights.values()))
        self.shape = (sum(self._sizes), *first.shape[1:])
        self.allocate(first.device, first.dtype)
        if not first.is_meta:
            self.put(0, torch.cat(list(weights.values())))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(F.linear(x, self.weight), self._sizes, dim=-1)

    def allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        empty = torch.empty(self.shape, dtype=dtype, device=device)
        self.weight = nn.Parameter(empty, requires_grad=False)

    def room(self, rows: slice, dtype: torch.dtype) -> Tensor | None:
        return self.weight.data[rows] if self.weight.dtype == dtype else None

    def put(self, first: int, rows: Tensor) -> None:
        self.weight.data[first : first + rows.shape[0]].copy_(rows)


def pack(model: nn.Module) -> None:
    """Put one matrix product in the place of every `ParallelLinears` of a model."""
    replace_parallel(model.modules(), PackedLinear)


def replace_parallel(
    modules: Iterable[nn.Module], make: Callable[[Mapping[str, Tensor]], nn.Module]
) -> None:
    """Put what `make` makes of its layers' weights in the place of every `ParallelLinears`.

    The weights are given by their official names, from the module on that had the layers; it has
    them no more.
    """
    for module in list(modules):
        for name, value in list(vars(module).items()):
            if isinstance(value, ParallelLinears):
                names = {layer: own for own, layer in module.named_children()}
                weights = {f"{names[layer]}.weight": layer.weight for layer in value.layers}
                for layer in value.layers:
                    delattr(module, names[layer])
                setattr(module, name, make(weights))


def rows_of(weights: Mapping[str, Tensor]) -> dict[str, slice]:
    """Where each weight's rows lie when all are stacked in their order."""
    edges = accumulate((weight.shape[0] for weight in weights.values()), initial=0)
    return {name: slice(*pair) for name, pair in zip(weights, pairwise(edges), strict=True)}
