"""The DiT's large matrix products in fp8: each row of the weights, and each token, has a scale.

Weights are quantised once; tokens as they come, by whatever makes them, so that what is quantised
is never written in between. The products add up in float32 and come out in bfloat16. Embeddings,
modulations and the last projection stay as they are: they are small, and all depends on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from klein_cli.errors import ModelError
from klein_cli.models.flux2 import Flux2Ops, Flux2Transformer
from klein_cli.models.layers import Together

FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0
_SMALLEST = 1e-12
_MULTIPLE = 16
_ROWS = 2048
"""Of a weight quantised at a time: in float32 they take little beside the weight."""


class Scaled(NamedTuple):
    """values * scales. values (..., width) fp8, scales (..., 1) float32."""

    values: Tensor
    scales: Tensor


Quantise = Callable[[Tensor], Scaled]


def scaled(x: Tensor) -> Scaled:
    """`x` in fp8: the largest value of each row becomes the largest of fp8."""
    wide = x.float()
    scales = wide.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST) / _FP8_MAX
    return Scaled((wide / scales).to(FP8), scales)


class Fp8Linear(nn.Module):
    """x @ weight.T without bias, in fp8; a tensor is quantised first.

    Raises ModelError for a weight whose sides the product cannot take.
    """

    def __init__(self, weight: Tensor, quantise: Quantise) -> None:
        super().__init__()
        if weight.shape[0] % _MULTIPLE or weight.shape[1] % _MULTIPLE:
            raise ModelError(
                f"a layer of {weight.shape[1]} by {weight.shape[0]} channels cannot be in fp8: "
                f"that takes multiples of {_MULTIPLE}",
                "use --quantize none",
            )
        values = torch.empty(weight.shape, dtype=FP8, device=weight.device)
        scales = torch.empty(1, weight.shape[0], dtype=torch.float32, device=weight.device)
        for at in range(0, weight.shape[0], _ROWS):
            rows = slice(at, at + _ROWS)
            part = scaled(weight[rows])
            values[rows], scales[0, rows] = part.values, part.scales[:, 0]
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self._quantise = quantise

    def forward(self, x: Tensor | Scaled) -> Tensor:
        """(..., in) -> (..., out) bfloat16."""
        values, scales = x if isinstance(x, Scaled) else self._quantise(x)
        weight = self.get_buffer("values")
        out: Tensor = torch._scaled_mm(
            values.view(-1, values.shape[-1]),
            weight.t(),
            scale_a=scales.view(-1, 1),
            scale_b=self.get_buffer("scales"),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return out.view(*values.shape[:-1], -1)


class Fp8Linears:
    """What `Together` does, in one matrix product of fp8."""

    def __init__(self, layers: tuple[nn.Linear, ...], quantise: Quantise) -> None:
        self._sizes = [layer.out_features for layer in layers]
        self._linear = Fp8Linear(torch.cat([layer.weight for layer in layers]), quantise)

    def __call__(self, x: Tensor | Scaled) -> tuple[Tensor, ...]:
        return torch.split(self._linear(x), self._sizes, dim=-1)


def quantise(
    dit: Flux2Transformer, quantise: Quantise = scaled, ops: Flux2Ops | None = None
) -> None:
    """Put fp8 layers in the place of all linear layers of a DiT's blocks, which has its weights.

    `ops`, if given, replace those of the blocks: they may hand the layers what is quantised.
    """
    for block in (*dit.transformer_blocks, *dit.single_transformer_blocks):
        for module in list(block.modules()):
            _quantise_children(module, quantise)
            if ops is not None and hasattr(module, "ops"):
                module.ops = ops


def _quantise_children(module: nn.Module, quantise: Quantise) -> None:
    for name, value in list(vars(module).items()):
        if isinstance(value, Together):
            setattr(module, name, Fp8Linears(value.layers, quantise))
            for own, child in list(module.named_children()):
                if child in value.layers:
                    delattr(module, own)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, Fp8Linear(child.weight, quantise))
