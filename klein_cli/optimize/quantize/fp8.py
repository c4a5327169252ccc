"""The DiT's large matrix products in fp8: each row of the weights, and each token, has a scale.

Weights are quantised once; tokens as they come, by whatever makes them, so that what is quantised
is never written in between. The products add up in float32 and come out in bfloat16. Embeddings,
modulations and the last projection stay as they are: they are small, and all depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from klein_cli.errors import ModelError
from klein_cli.models.flux2 import Flux2Ops, Flux2Transformer
from klein_cli.optimize.linears import replace_parallel, rows_of

FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0
_SMALLEST = 1e-12
_MULTIPLE = 16
_ROWS = 4096
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


class Fp8Weight(nn.Module):
    """A weight in fp8, and x @ weight.T without bias. See `klein_cli.checkpoints.slots.Packed`.

    `weights` are stacked, and named from the module's parent on. Raises ModelError for a weight
    whose sides the product cannot take.
    """

    def __init__(self, weights: Mapping[str, Tensor], quantise: Quantise) -> None:
        super().__init__()
        self.holds = rows_of(weights)
        first = next(iter(weights.values()))
        self.shape = (sum(weight.shape[0] for weight in weights.values()), first.shape[1])
        if any(side % _MULTIPLE for side in self.shape):
            raise ModelError(
                f"a layer of {self.shape[1]} by {self.shape[0]} channels cannot be in fp8: "
                f"that takes multiples of {_MULTIPLE}",
                "use --quantize none",
            )
        self._quantise = quantise
        self.allocate(first.device, first.dtype)
        if not first.is_meta:
            for rows, weight in zip(self.holds.values(), weights.values(), strict=True):
                self.put(rows.start, weight)

    def allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        """Weights stored in another dtype are rounded to `dtype` before they are quantised."""
        self._dtype = dtype
        values = torch.empty(self.shape, dtype=FP8, device=device)
        scales = torch.empty(1, self.shape[0], dtype=torch.float32, device=device)
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)

    def room(self, rows: slice, dtype: torch.dtype) -> Tensor | None:
        return None

    def put(self, first: int, rows: Tensor) -> None:
        for part in torch.split(rows, _ROWS):
            place = slice(first, first + part.shape[0])
            quantised = scaled(part.to(self._dtype))
            self.get_buffer("values")[place] = quantised.values
            self.get_buffer("scales")[0, place] = quantised.scales[:, 0]
            first = place.stop

    def product(self, x: Tensor | Scaled) -> Tensor:
        """(..., in) -> (..., out) bfloat16. A tensor is quantised first."""
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


class Fp8Linear(Fp8Weight):
    """What `nn.Linear` without bias does, in fp8."""

    def forward(self, x: Tensor | Scaled) -> Tensor:
        return self.product(x)


class Fp8ParallelLinears(Fp8Weight):
    """What `ParallelLinears` does, in one matrix product of fp8."""

    def forward(self, x: Tensor | Scaled) -> tuple[Tensor, ...]:
        sizes = [rows.stop - rows.start for rows in self.holds.values()]
        return torch.split(self.product(x), sizes, dim=-1)


def quantise(
    dit: Flux2Transformer, quantise: Quantise = scaled, ops: Flux2Ops | None = None
) -> None:
    """Put fp8 layers in the place of all linear layers of a DiT's blocks.

    `ops`, if given, replace those of the blocks: they may hand the layers what is quantised.
    """
    for block in (*dit.transformer_blocks, *dit.single_transformer_blocks):
        replace_parallel(block.modules(), partial(Fp8ParallelLinears, quantise=quantise))
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    layer = Fp8Linear({f"{name}.weight": child.weight}, quantise)
                    setattr(module, name, layer)
            if ops is not None and hasattr(module, "ops"):
                module.ops = ops
