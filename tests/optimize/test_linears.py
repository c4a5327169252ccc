"""One matrix product for several layers of one input: the same numbers, the same names, no copy."""

from __future__ import annotations

import torch
from torch import nn

from klein_cli.models.layers import Together
from klein_cli.optimize.linears import FusedLinears, fuse


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(6, 4, bias=False)
        self.to_k = nn.Linear(6, 3, bias=False)
        self.qk = Together(self.to_q, self.to_k)


def test_fused_layers_compute_the_same() -> None:
    part, x = Part().requires_grad_(False), torch.randn(2, 5, 6)
    wanted = part.qk(x)
    names = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    fuse(nn.ModuleList([part]))
    assert isinstance(part.qk, FusedLinears)
    for found, expected in zip(part.qk(x), wanted, strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert part.state_dict().keys() == names.keys()
    assert all(torch.equal(tensor, names[name]) for name, tensor in part.state_dict().items())


def test_fused_weights_are_held_once() -> None:
    """8 GB of weights held twice would be 16."""
    part = Part().requires_grad_(False)
    fuse(part)
    storages = {layer.weight.untyped_storage().data_ptr() for layer in (part.to_q, part.to_k)}
    assert len(storages) == 1
    assert part.to_q.weight.untyped_storage().nbytes() == 4 * (6 * 4 + 6 * 3)
