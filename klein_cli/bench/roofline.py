"""What this machine does at best, measured here and now: the yardstick for everything else."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from klein_cli.bench.flops import Flops, Model
from klein_cli.bench.measure import Spread, seconds_per_call
from klein_cli.device.device import device_for
from klein_cli.device.memory import is_out_of_memory
from klein_cli.errors import ModelError
from klein_cli.optimize.quantize.fp8 import Fp8Linear, scaled

_SQUARE = {True: 8192, False: 1024}
_COPIED_BYTES = {True: 2 << 30, False: 1 << 28}
"""On a GPU, and elsewhere."""
_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """One best rate. `kind`: copy (bytes a second, read and written), matmul, fp8 or attention
    (operations a second); `shape` says of what; `seconds` is one call's time."""

    kind: str
    shape: str
    rate: float
    seconds: Spread


def ceilings(
    model: Model, tokens: int, device: torch.device, dtype: torch.dtype, budget: float
) -> tuple[list[Ceiling], dict[str, str]]:
    """The machine's ceilings, at `budget` seconds each, and why it does not have the others.

    `tokens` is the length of the DiT's sequence, for the shapes of its widest linear and its
    attention. Raises a RuntimeError when memory runs out.
    """
    side = _SQUARE[device_for(device).is_gpu]
    shapes = [(side, side, side), (tokens, *model.widest_linear)]
    found = [_copy(device, budget)]
    found += [_matmul(shape, device, dtype, budget) for shape in shapes]
    left_out = {}
    try:
        found += [_fp8(shape, device, budget) for shape in shapes]
    except (RuntimeError, ModelError) as error:
        if is_out_of_memory(error):
            raise
        why = f"not on this machine: {str(error).strip().splitlines()[0]}"
        left_out["the fp8 ceiling"] = why
    found.append(_attention(model, tokens, device, dtype, budget))
    return found, left_out


def limits(
    flops: Flops, steps: int, found: Sequence[Ceiling], dtype: str
) -> dict[str, dict[str, float]]:
    """The limit in `dtype`, and with the DiT's linears in fp8 where the machine has it.

    A limit: the seconds, by part, below which no image can be made if every operation ran at the
    best rate.
    """
    plain = max(ceiling.rate for ceiling in found if ceiling.kind == "matmul")
    fp8 = [ceiling.rate for ceiling in found if ceiling.kind == "fp8"]
    by_name = {dtype: _limit(flops, steps, plain, plain)}
    if fp8:
        by_name["fp8"] = _limit(flops, steps, plain, max(fp8))
    return by_name


def _limit(flops: Flops, steps: int, rate: float, linear_rate: float) -> dict[str, float]:
    encode, decode = (flops.encode + flops.references) / rate, flops.decode / rate
    denoise = flops.dit_linears / linear_rate + flops.dit_attention / rate
    whole = encode + denoise + decode
    parts = {"encode": encode, "step": denoise / steps, "denoise": denoise, "decode": decode}
    return {**parts, "picture": whole}


def _copy(device: torch.device, budget: float) -> Ceiling:
    size = _COPIED_BYTES[device_for(device).is_gpu]
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    spread = seconds_per_call(lambda: target.copy_(source), device, budget)
    return Ceiling(
        kind="copy", shape=f"{size >> 20} MiB", rate=2 * size / spread.median, seconds=spread
    )


def _matmul(
    shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, budget: float
) -> Ceiling:
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(columns, inner, device=device, dtype=dtype)
    return _product("matmul", shape, lambda: F.linear(left, right), device, budget)


def _fp8(shape: tuple[int, int, int], device: torch.device, budget: float) -> Ceiling:
    """klein's own layer: a scale for every row of the left and every column of the right matrix."""
    if not device_for(device).fp8:
        raise NotImplementedError("fp8 matrix products need a GPU")
    rows, inner, columns = shape
    layer = Fp8Linear({"weight": torch.randn(columns, inner, device=device)}, scaled)
    left = scaled(torch.randn(rows, inner, device=device))
    return _product("fp8", shape, lambda: layer(left), device, budget)


def _product(
    kind: str,
    shape: tuple[int, int, int],
    call: Callable[[], object],
    device: torch.device,
    budget: float,
) -> Ceiling:
    rows, inner, columns = shape
    spread = seconds_per_call(call, device, budget)
    rate = 2 * rows * inner * columns / spread.median
    return Ceiling(kind=kind, shape=f"{rows}x{inner}x{columns}", rate=rate, seconds=spread)


def _attention(
    model: Model, tokens: int, device: torch.device, dtype: torch.dtype, budget: float
) -> Ceiling:
    """The DiT's attention by torch's own choice of kernel and by each kernel that can: the best."""
    heads, size = model.dit.num_attention_heads, model.dit.attention_head_dim
    query, key, value = (
        torch.randn(1, tokens, heads, size, device=device, dtype=dtype).transpose(1, 2)
        for _ in range(3)
    )

    def attend() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    spreads = {"torch's choice": seconds_per_call(attend, device, budget)}
    if device_for(device).triton:
        spreads |= _by_kernel(attend, device, budget)
    name = min(spreads, key=lambda kernel: spreads[kernel].median)
    return Ceiling(
        kind="attention",
        shape=f"{heads} heads of {size}, {tokens} tokens, {name}",
        rate=4 * tokens * tokens * heads * size / spreads[name].median,
        seconds=spreads[name],
    )


def _by_kernel(
    attend: Callable[[], Tensor], device: torch.device, budget: float
) -> dict[str, Spread]:
    spreads = {}
    for name, backend in _BACKENDS.items():
        # Of a kernel that will not do, torch warns of every reason and then raises.
        with warnings.catch_warnings(), sdpa_kernel(backend), suppress(RuntimeError):
            warnings.simplefilter("ignore")
            spreads[name] = seconds_per_call(attend, device, budget)
    return spreads
