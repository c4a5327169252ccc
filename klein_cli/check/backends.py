"""What this machine computes right: each kernel that klein may use, on small tensors.

Each is compared with a float64 reference on the CPU; run by `check.probes`.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from klein_cli.check.finding import BAD, NOTE, OK, Finding
from klein_cli.check.metrics import relative_error
from klein_cli.device.device import device_for
from klein_cli.errors import UsageError, first_line
from klein_cli.models.attention import AttentionLengths, EagerAttention, attention_backend
from klein_cli.optimize.backend import device_context
from klein_cli.optimize.quantize.fp8 import Scaled, scaled

BACKENDS = ("sdpa", "eager", "flash-attn")

_LENGTHS, _POSITIONS, _HEADS, _KEY_HEADS, _HEAD_DIM = (12, 77, 128), 128, 8, 2, 128
_CLOSE = {"float32": 1e-5, "bfloat16": 1e-2}
"""Relative error that passes: right ones were measured at 1e-6 and 2e-3."""
_EPSILON = 1e-6


def attention(name: str, device: torch.device) -> Finding:
    """One backend of the text encoder's attention against the mask written out in float64.

    Padded rows count as much as valid ones: a backend that ignores the mask is wrong there alone.
    """
    on_gpu = device_for(device).is_gpu
    dtype = torch.bfloat16 if on_gpu else torch.float32
    try:
        attend = attention_backend(name, device, dtype)
    except UsageError as error:
        installed = on_gpu and find_spec("flash_attn") is not None
        state, hint = (BAD, error.hint) if installed else (NOTE, "")
        return Finding(name, state, f"not here: {error.message}", hint)
    shapes = [(len(_LENGTHS), _POSITIONS, n, _HEAD_DIM) for n in (_HEADS, _KEY_HEADS, _KEY_HEADS)]
    inputs = [_random(shape, seed).to(dtype) for seed, shape in enumerate(shapes)]
    host = torch.device("cpu")
    query, key, value = (tensor.double() for tensor in inputs)
    wanted = EagerAttention()(query, key, value, AttentionLengths.of(_LENGTHS, _POSITIONS, host))
    query, key, value = (tensor.to(device) for tensor in inputs)
    lengths = AttentionLengths.of(_LENGTHS, _POSITIONS, device)
    with device_context(device_for(device)):
        found = attend(query, key, value, lengths).cpu()
    errors = [
        relative_error(found[row, part], wanted[row, part])
        for row, length in enumerate(_LENGTHS)
        for part in (slice(0, length), slice(length, None))
        if len(found[row, part])
    ]
    # A tensor's max passes a NaN on; Python's own may lose it.
    worst = float(torch.tensor(errors).max())
    return _checked(
        name, worst, _CLOSE[str(dtype).removeprefix("torch.")], "use another --attention"
    )


def cudnn_attention() -> Finding:
    """The attention of the DiT on recent GPUs: torch's, by cuDNN."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query, key, value = (
        _random((1, 24, 256, _HEAD_DIM), seed).to(torch.bfloat16) for seed in range(3)
    )
    wanted = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    try:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
            found = F.scaled_dot_product_attention(query.cuda(), key.cuda(), value.cuda()).cpu()
    except RuntimeError as error:
        said = f"not here ({first_line(error)}): torch takes another, slower one"
        return Finding("cuDNN attention", NOTE, said)
    return _checked(
        "cuDNN attention", relative_error(found, wanted), _CLOSE["bfloat16"], "update torch"
    )


def triton() -> Finding:
    """Whether klein's kernels can be compiled here and run: one of them does."""
    values, weight = _random((1, 64, 256), 0), _random((256,), 1)
    try:
        from klein_cli.optimize.kernels.norms import rms_norm

        found = rms_norm(values.cuda(), weight.cuda(), _EPSILON).cpu()
    except ImportError as error:
        return Finding("triton", NOTE, f"not here ({first_line(error)}): klein runs slower")
    except Exception as error:  # a missing C compiler, headers or driver library: all sorts
        said = f"cannot compile ({first_line(error)}): klein runs slower"
        hint = "it needs a C compiler and Python's headers: apt install gcc python3-dev"
        return Finding("triton", NOTE, said, hint)
    wanted = F.rms_norm(values.double(), (256,), weight.double(), _EPSILON)
    return _checked(
        "triton", relative_error(found, wanted), _CLOSE["float32"], "install triton again"
    )


def fp8() -> Finding:
    """The product of --quantize fp8: rows and columns with a scale of their own each."""
    if torch.cuda.get_device_capability() < (8, 9):
        return Finding("fp8", NOTE, "this GPU has none: --quantize fp8 needs it")
    left, right = scaled(_random((64, 256), 0)), scaled(_random((128, 256), 1))
    wanted = _exact(left) @ _exact(right).T
    try:
        found = torch._scaled_mm(
            left.values.cuda(),
            right.values.cuda().t(),
            scale_a=left.scales.cuda(),
            scale_b=right.scales.cuda().t(),
            out_dtype=torch.bfloat16,
        ).cpu()
    except (RuntimeError, ValueError) as error:
        return Finding("fp8", NOTE, f"not here ({first_line(error)})", "update torch")
    return _checked(
        "fp8", relative_error(found, wanted), _CLOSE["bfloat16"], "leave --quantize out"
    )


def _checked(name: str, error: float, limit: float, hint: str) -> Finding:
    data = {"error": error if error == error else "nan", "limit": limit}
    if error <= limit:
        return Finding(name, OK, f"right, to {error:.0e}", data=data)
    said = f"WRONG here: relative error {error:.1e}, and {limit:.0e} is the limit"
    return Finding(name, BAD, said, hint, data)


def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _exact(x: Scaled) -> Tensor:
    return x.values.double() * x.scales.double()
