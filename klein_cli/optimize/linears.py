"""Matrix products of one input as one: the weights of q, k and v side by side in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klein_cli.models.layers import Together


class FusedLinears:
    """What `Together` does, in one matrix product.

    The layers keep their names and become views of the one weight, so that nothing is held twice.
    """

    def __init__(self, layers: tuple[nn.Linear, ...]) -> None:
        self._sizes = [layer.out_features for layer in layers]
        self._weight = torch.cat([layer.weight for layer in layers])
        for layer, part in zip(layers, torch.split(self._weight, self._sizes), strict=True):
            layer.weight = nn.Parameter(part, requires_grad=False)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(F.linear(x, self._weight), self._sizes, dim=-1)


def fuse(model: nn.Module) -> None:
    """Put one matrix product in the place of every `Together` of a model that has its weights."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Together):
                setattr(module, name, FusedLinears(value.layers))
