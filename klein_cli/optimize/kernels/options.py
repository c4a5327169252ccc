"""How a kernel is compiled, stated rather than left to Triton's defaults, which change."""

from __future__ import annotations

from typing import Any


def options(warps: int) -> dict[str, Any]:
    """For `warps` of 32 threads; products and sums are fused, which rounds once less."""
    return {"num_warps": warps, "enable_fp_fusion": True}


def row_options(block: int) -> dict[str, Any]:
    """For one row of `block` values: 16 values a thread, and at most 16 warps."""
    return options(min(16, max(1, block // 512)))
