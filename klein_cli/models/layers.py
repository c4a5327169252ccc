"""What the models' attention and feed-forward layers share."""

from __future__ import annotations

from torch import Tensor, nn


class ParallelLinears:
    """Linear layers of one input: x -> the output of each, in their order.

    No module: the layers belong to the module that made them, under their official names. A
    faster engine puts one matrix product of all their weights in its place.
    """

    def __init__(self, *layers: nn.Linear) -> None:
        self.layers = layers

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


def split_heads(x: Tensor, size: int) -> Tensor:
    """(B, tokens, heads * size) -> (B, tokens, heads, size)."""
    return x.reshape(*x.shape[:-1], -1, size)
