"""Enlarging twice and a 3x3 convolution as one 2x2 convolution of the small image.

Of the nine pixels that a 3x3 convolution sees in an image whose pixels became four each, some are
the same pixel. Where they lie depends on which of the four is computed: each has a 2x2 convolution
of its own, whose weights are sums of the nine. Four ninths of the products, and the enlarged image
is never written.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klein_cli.models.vae import Upsample

_PHASES = 4
"""A large pixel's place above the small one: row, then column."""


class FoldedConv(nn.Module):
    """In the place of a 3x3 convolution of an enlarged image: it is given the small one.

    Its bias is still to be added.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.folded = FoldedWeight(conv.weight)
        assert conv.bias is not None
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4C, H + 1, W + 1), phase by phase.

        Channel c of large pixel (2i + p, 2j + q) is channel (2p + q) C + c at (i + p, j + q).
        """
        return F.conv2d(x, self.folded.weight, padding=1)


class FoldedWeight(nn.Module):
    """Four sets of 2x2 weights, (4C, C, 2, 2). See `klein_cli.checkpoints.load.Packed`.

    Sums are made in float32 of what is stored, and rounded once.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.holds = {"weight": slice(0, weight.shape[0])}
        self.shape = tuple(weight.shape)
        self.allocate(weight.device, weight.dtype)
        if not weight.is_meta:
            self.put(0, weight)

    def allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        rows, channels, *_ = self.shape
        empty = torch.empty(
            (_PHASES * rows, channels, 2, 2),
            dtype=dtype,
            device=device,
            memory_format=torch.channels_last,
        )
        self.weight = nn.Parameter(empty, requires_grad=False)

    def room(self, rows: slice, dtype: torch.dtype) -> Tensor | None:
        return None

    def put(self, first: int, rows: Tensor) -> None:
        phases = self.weight.data.view(_PHASES, *self.shape[:2], 2, 2)
        phases[:, first : first + rows.shape[0]] = fold(rows)


def fold(weight: Tensor) -> Tensor:
    """(n, C, 3, 3) -> (4, n, C, 2, 2) float32: the weights of each phase."""
    rows = _merged(weight.float(), 2)
    return torch.stack([phase for row in rows for phase in _merged(row, 3)])


def _merged(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Three weights along `dim` -> two, for the first and for the second of two large pixels."""
    before, here, after = weight.unbind(dim)
    return torch.stack((before, here + after), dim), torch.stack((before + here, after), dim)


def fold_upsampling(model: nn.Module) -> None:
    """Put a `FoldedConv` in the place of every convolution that an enlarged image goes through."""
    for module in model.modules():
        if isinstance(module, Upsample):
            assert isinstance(module.conv, nn.Conv2d)
            module.conv = FoldedConv(module.conv)
