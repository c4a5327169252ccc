"""What the models of one pipeline compute with, chosen once from its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from klein_cli.errors import ModelError
from klein_cli.models.flux2 import Flux2Ops, Flux2Transformer
from klein_cli.models.qwen3 import Qwen3Model, Qwen3Ops
from klein_cli.models.vae import VaeDecoder, VaeOps
from klein_cli.optimize.graphs import Graphs, Run, direct
from klein_cli.settings import Settings

_CUDNN_ATTENTION = (9, 10)
"""Generations of GPU, by compute capability, on which cuDNN's attention is the fastest of torch's:
on an H200 with 24 heads of 128 and 4608 tokens .43 ms, where flash-attention takes .81."""


def _as_it_is(model: nn.Module) -> None:
    pass


def _nothing_to_import() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The ops that models are built with, what is done to them when their weights are there, and
    how their functions are run. The defaults are plain torch.

    `get_ready` imports what the ops need: best called while weights are on their way.
    """

    flux2: Flux2Ops = field(default_factory=Flux2Ops)
    qwen3: Qwen3Ops = field(default_factory=Qwen3Ops)
    vae: VaeOps = field(default_factory=VaeOps)
    prepare: Callable[[nn.Module], None] = _as_it_is
    run: Run = direct
    get_ready: Callable[[], None] = _nothing_to_import

    def give_back_memory(self) -> None:
        """Free what is held only to be quick."""
        if isinstance(self.run, Graphs):
            self.run.clear()


PLAIN = Tools()


def tools(settings: Settings) -> Tools:
    """The tools for settings that `klein_cli.device.choose.choose` has decided."""
    device = torch.device(settings.device)
    run = Graphs(device) if device.type == "cuda" else direct
    if settings.kernels != "triton":
        prepare = _quantised if settings.quantize == "fp8" else _as_it_is
        return Tools(run=run, prepare=prepare)
    from klein_cli.optimize.kernels.ops import FusedFlux2Ops, FusedQwen3Ops, FusedVaeOps

    return Tools(
        flux2=FusedFlux2Ops(),
        qwen3=FusedQwen3Ops(),
        vae=FusedVaeOps(),
        prepare=_fused_and_quantised if settings.quantize == "fp8" else _fused,
        run=run,
        get_ready=_import_kernels,
    )


@contextmanager
def at_work(device: torch.device) -> Iterator[None]:
    """The device is torch's current one, and its fastest attention is tried first."""
    if device.type != "cuda":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.cuda.device(device):
        if torch.cuda.get_device_capability(device)[0] not in _CUDNN_ATTENTION:
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


def _fused(model: nn.Module) -> None:
    from klein_cli.optimize.linears import fuse

    if isinstance(model, VaeDecoder):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        _check_heads(model)
        fuse(model)


def _quantised(model: nn.Module) -> None:
    from klein_cli.optimize.quantize.fp8 import quantise

    if isinstance(model, Flux2Transformer):
        quantise(model)


def _fused_and_quantised(model: nn.Module) -> None:
    from klein_cli.optimize.quantize.fp8 import quantise
    from klein_cli.optimize.quantize.fp8_ops import Fp8Flux2Ops, quantise_rows

    if isinstance(model, Flux2Transformer):
        _check_heads(model)
        quantise(model, quantise_rows, Fp8Flux2Ops())
    else:
        _fused(model)


def _check_heads(model: nn.Module) -> None:
    """The kernels work on heads in blocks, which have powers of two."""
    size = 1
    if isinstance(model, Flux2Transformer):
        size = model.config.attention_head_dim
    elif isinstance(model, Qwen3Model):
        size = model.config.head_dim
    if size & (size - 1):
        raise ModelError(
            f"Triton's kernels cannot take this model's heads of {size} channels",
            "use --kernels torch",
        )
