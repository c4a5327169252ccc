"""What the parts of one pipeline compute with, chosen once from its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from klein_cli.device.device import Device, device_for
from klein_cli.errors import ModelError
from klein_cli.models.flux2 import Flux2Ops
from klein_cli.models.qwen3 import Qwen3Ops
from klein_cli.models.vae import VaeOps
from klein_cli.optimize.graphs import Graphs, Run, direct
from klein_cli.optimize.linears import pack
from klein_cli.optimize.upsampling import fold_upsampling
from klein_cli.settings import Settings

_CUDNN_ATTENTION = (9, 10)
"""Generations of GPU, by compute capability, on which cuDNN's attention is the fastest of torch's:
on an H200 with 24 heads of 128 and 4608 tokens .43 ms, where flash-attention takes .81."""


Step = Callable[[nn.Module], None]
"""Changes a module before it has its weights: how it holds them, and by what it computes."""


def _nothing_to_import() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The ops that models are built with, the steps that each part takes between its construction
    and its weights, and how functions are run. The defaults are plain torch.

    `get_ready` imports what the ops need: best called while weights are on their way.
    """

    flux2: Flux2Ops = field(default_factory=Flux2Ops)
    qwen3: Qwen3Ops = field(default_factory=Qwen3Ops)
    vae: VaeOps = field(default_factory=VaeOps)
    steps: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    run: Run = direct
    get_ready: Callable[[], None] = _nothing_to_import

    def prepare(self, part: str, module: nn.Module) -> None:
        """Take the steps of a part, one of `klein_cli.checkpoints.source.PARTS`."""
        for step in self.steps.get(part, ()):
            step(module)


PLAIN = Backend()


def backend_for(settings: Settings) -> Backend:
    """The backend for settings that `klein_cli.device.choose` has decided."""
    device = device_for(settings.device)
    run = Graphs(device.torch_device) if device.graphs else direct
    if settings.kernels != "triton":
        steps = {"transformer": (_quantise_fp8,)} if settings.quantize == "fp8" else {}
        return Backend(run=run, steps=steps)
    from klein_cli.optimize.kernels.ops import FusedFlux2Ops, FusedQwen3Ops, FusedVaeOps

    linears = _fused_fp8 if settings.quantize == "fp8" else pack
    return Backend(
        flux2=FusedFlux2Ops(),
        qwen3=FusedQwen3Ops(),
        vae=FusedVaeOps(),
        steps={
            "text_encoder": (_check_heads, pack),
            "transformer": (_check_heads, linears),
            "vae": (_channels_last, fold_upsampling),
        },
        run=run,
        get_ready=_import_kernels,
    )


@contextmanager
def device_context(device: Device) -> Iterator[None]:
    """The device is torch's current one, and its fastest attention is tried first."""
    if device.kind != "cuda":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with device.current():
        if torch.cuda.get_device_capability(device.name)[0] not in _CUDNN_ATTENTION:
            yield
            return
        order = [
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.MATH,
        ]
        with sdpa_kernel(order, set_priority=True):
            yield


def _import_kernels() -> None:
    from klein_cli.optimize.kernels import group_norm, norms, qk_norm_rope, upsample  # noqa: F401


def _channels_last(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _quantise_fp8(model: Any) -> None:
    from klein_cli.optimize.quantize.fp8 import quantise

    quantise(model)


def _fused_fp8(model: Any) -> None:
    from klein_cli.optimize.quantize.fp8 import quantise
    from klein_cli.optimize.quantize.fp8_ops import Fp8Flux2Ops, quantise_rows

    quantise(model, quantise_rows, Fp8Flux2Ops())


def _check_heads(model: Any) -> None:
    """The kernels work on heads in blocks, which have powers of two."""
    size = model.head_size
    if size & (size - 1):
        raise ModelError(
            f"Triton's kernels cannot take this model's heads of {size} channels",
            "use --kernels torch",
        )
