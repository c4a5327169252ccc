"""The DiT's ops by Triton kernels that hand fp8 to the layers behind them."""

from __future__ import annotations

from torch import Tensor

from klein_cli.optimize.kernels.ops import FusedFlux2Ops
from klein_cli.optimize.quantize.fp8 import Scaled


class Fp8Flux2Ops(FusedFlux2Ops):
    """See `Flux2Ops`, for blocks whose linear layers take `Scaled`."""

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Scaled:
        from klein_cli.optimize.kernels.norms import modulate_fp8

        return Scaled(*modulate_fp8(x, shift, scale, eps))

    def swiglu(self, x: Tensor, beside: Tensor | None = None) -> Scaled:
        from klein_cli.optimize.kernels.norms import gated_fp8

        gate, value = x.chunk(2, dim=-1)
        return Scaled(*gated_fp8(gate, value, beside))


def quantise_rows(x: Tensor) -> Scaled:
    """`fp8.scaled` in one pass."""
    from klein_cli.optimize.kernels.norms import quantised

    return Scaled(*quantised(x))
