"""One matrix product for several layers of one input: the same numbers, held once."""

from __future__ import annotations

import torch
from torch import nn

from klein_cli.models.layers import ParallelLinears
from klein_cli.optimize.linears import PackedLinear, pack


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(6, 4, bias=False)
        self.to_k = nn.Linear(6, 3, bias=False)
        self.qk = ParallelLinears(self.to_q, self.to_k)


def test_packed_layers_compute_the_same() -> None:
    part, x = Part().requires_grad_(False), torch.randn(2, 5, 6)
    wanted = part.qk(x)
    pack(nn.ModuleList([part]))
    packed: object = part.qk
    assert isinstance(packed, PackedLinear)
    for found, expected in zip(packed(x), wanted, strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_packed_weights_are_held_once_and_known_by_their_names() -> None:
    """8 GB of weights held twice would be 16."""
    part = Part().requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    pack(part)
    packed: object = part.qk
    assert isinstance(packed, PackedLinear)
    assert [tensor.numel() for tensor in part.state_dict().values()] == [6 * 4 + 6 * 3]
    assert packed.holds.keys() == weights.keys()
    for name, rows in packed.holds.items():
        assert torch.equal(packed.weight[rows], weights[name])
