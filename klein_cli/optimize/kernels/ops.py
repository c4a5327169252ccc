"""The models' ops by Triton kernels: fewer passes over memory, and one rounding where torch has
several.

The kernels, and Triton with them, are imported by the first call: models are built before that, so
that their weights can be on their way meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klein_cli.models.flux2 import Flux2Ops, Operand, Projected, Rotary
from klein_cli.models.layers import split_heads
from klein_cli.models.qwen3 import Qwen3Ops, Qwen3RMSNorm
from klein_cli.models.vae import Convolved, VaeOps
from klein_cli.optimize.upsampling import FoldedConv

_MOST_SCORES = 2**26
"""Scores that the VAE's attention holds at once: 256 MB of float32, whatever the image."""


class FusedFlux2Ops(Flux2Ops):
    """See `Flux2Ops`."""

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Operand:
        from klein_cli.optimize.kernels.norms import modulate

        return modulate(x, shift, scale, eps)

    def add_gated(self, x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        from klein_cli.optimize.kernels.norms import add_gated

        return add_gated(x, gate, y)

    def swiglu(self, x: Tensor, beside: Tensor | None = None) -> Operand:
        from klein_cli.optimize.kernels.norms import gated

        gate, value = x.chunk(2, dim=-1)
        return gated(gate, value, beside)

    def qk_norm_rope(
        self, streams: Sequence[Projected], rotary: Rotary
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One stream stays where its projection lies: its queries and keys are turned there."""
        from klein_cli.optimize.kernels.qk_norm_rope import norm_and_rotate, norm_rotate_and_concat

        norm = streams[0].norm_query
        assert norm.eps is not None
        if len(streams) == 1:
            norm_query, norm_key, query, key, value = streams[0]
            weights = norm_query.weight, norm_key.weight
            norm_and_rotate(query, key, weights, rotary, norm.eps, halves=False)
        else:
            query, key, value = norm_rotate_and_concat(
                [(s.query, s.key, s.value) for s in streams],
                [(s.norm_query.weight, s.norm_key.weight) for s in streams],
                rotary,
                norm.eps,
            )
        size = norm.normalized_shape[0]
        return split_heads(query, size), split_heads(key, size), split_heads(value, size)


class FusedQwen3Ops(Qwen3Ops):
    """See `Qwen3Ops`."""

    def normalise(self, x: Tensor, norm: Qwen3RMSNorm) -> Tensor:
        from klein_cli.optimize.kernels.norms import rms_norm

        return rms_norm(x, norm.weight, norm.eps)

    def qk_norm_rope(
        self,
        query: Tensor,
        key: Tensor,
        norm_query: Qwen3RMSNorm,
        norm_key: Qwen3RMSNorm,
        rotary: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """In place."""
        from klein_cli.optimize.kernels.qk_norm_rope import norm_and_rotate

        weights = norm_query.weight, norm_key.weight
        norm_and_rotate(query, key, weights, rotary, norm_query.eps, halves=True)
        size = norm_query.weight.numel()
        return split_heads(query, size), split_heads(key, size)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        from klein_cli.optimize.kernels.norms import gated

        return gated(gate, up)


class FusedVaeOps(VaeOps):
    """See `VaeOps`. Images are channels_last.

    torch adds a bias in a pass of its own, after cuDNN; here it goes with what comes next.
    """

    def convolve(self, x: Tensor, conv: nn.Conv2d, *, bias: Tensor | None = None) -> Convolved:
        out = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
        if bias is None:
            return Convolved(out, conv.bias)
        assert conv.bias is not None
        assert conv.kernel_size == (1, 1)  # at an edge, others see zeros instead of the bias
        through = torch.addmv(conv.bias.float(), conv.weight.flatten(1).float(), bias.float())
        return Convolved(out, through)

    def normalise(
        self, x: Tensor, norm: nn.GroupNorm, *, silu: bool, bias: Tensor | None = None
    ) -> Tensor:
        from klein_cli.optimize.kernels.group_norm import group_norm

        affine = norm.weight, norm.bias
        return group_norm(x, norm.num_groups, *affine, norm.eps, silu=silu, before=bias)

    def add(self, x: Convolved, y: Convolved) -> Tensor:
        from klein_cli.optimize.kernels.upsample import add_biased

        biases = [bias.float() for bias in (x.bias, y.bias) if bias is not None]
        return add_biased(x.values, y.values, sum(biases[1:], biases[0]))

    def upsample(self, x: Tensor, conv: nn.Module) -> Convolved:
        """By a `FoldedConv`."""
        from klein_cli.optimize.kernels.upsample import interleave

        assert isinstance(conv, FoldedConv)
        return Convolved(interleave(conv(x)), conv.bias)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Scores in float32, some queries at a time.

        No attention kernel of torch's is fast with heads of 512 channels.
        """
        from klein_cli.optimize.kernels.group_norm import softmax

        out = torch.empty_like(query)
        scale = query.shape[-1] ** -0.5
        positions = key.shape[1]
        some = max(1, _MOST_SCORES // positions)
        for image in range(query.shape[0]):
            for first in range(0, positions, some):
                rows = slice(first, first + some)
                scores = _scores(query[image, rows], key[image])
                weights = softmax(scores, scale, value.dtype)
                torch.mm(weights, value[image], out=out[image, rows])
        return out


def _scores(query: Tensor, key: Tensor) -> Tensor:
    if query.dtype == torch.float32:
        return torch.mm(query, key.t())
    return torch.mm(query, key.t(), out_dtype=torch.float32)
