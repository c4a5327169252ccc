"""Whole models on Triton's kernels and fused weights against the same in plain torch.

On a GPU, or on the CPU in Triton's interpreter: see test_interpreted.py.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from interpreted import DEVICE, MARKS, _rounding_that_carries
from small_models import FLUX2, GRID, QWEN3, VAE, WORDS, distance, filled, flux2_inputs
from torch import Tensor

from klein_cli.errors import ModelError
from klein_cli.models.attention import AttentionLengths, SdpaAttention
from klein_cli.models.flux2 import Flux2Transformer
from klein_cli.models.qwen3 import Qwen3Model
from klein_cli.models.vae import VaeDecoder
from klein_cli.models.vae_encoder import VaeEncoder
from klein_cli.optimize.backend import PLAIN, Backend, backend_for
from klein_cli.sampling.latents import position_ids
from klein_cli.settings import Settings

pytestmark = MARKS
__all__ = ["_rounding_that_carries"]


def on_kernels(quantize: str = "none") -> Backend:
    """Those of a GPU; the CPU's, which the interpreter has, run functions as they are."""
    return backend_for(Settings(device=DEVICE, kernels="triton", quantize=quantize))


def flux2(backend: Backend, dtype: torch.dtype) -> Tensor:
    dit = filled(Flux2Transformer(FLUX2, backend.flux2)).to(DEVICE, dtype)
    backend.prepare("transformer", dit)
    out: Tensor = dit(*flux2_inputs(dtype, DEVICE))
    return out


REFERENCES = (2, 2), (1, 3)


def _referring(
    backend: Backend, dtype: torch.dtype
) -> tuple[Flux2Transformer, tuple[Tensor, ...], Tensor, Tensor]:
    """A DiT, what it is given of an image at any step, two references, and all positions."""
    dit = filled(Flux2Transformer(FLUX2, backend.flux2)).to(DEVICE, dtype)
    backend.prepare("transformer", dit)
    latents, timestep, text, _ = flux2_inputs(dtype, DEVICE)
    generator = torch.Generator().manual_seed(5)
    references = torch.randn(1, 7, FLUX2.in_channels, generator=generator).to(DEVICE, dtype)
    ids = position_ids(WORDS, GRID, torch.device(DEVICE), REFERENCES)
    return dit, (latents, dit.context_embedder(text), dit.modulations(timestep)), references, ids


def edit(backend: Backend, dtype: torch.dtype) -> Tensor:
    dit, given, references, ids = _referring(backend, dtype)
    return dit.velocity(*given, *dit.rotary(ids), references)


def kept(backend: Backend, dtype: torch.dtype) -> Tensor:
    dit, given, references, ids = _referring(backend, dtype)
    still = dit.modulations(torch.zeros(1, dtype=dtype, device=DEVICE))
    keys = dit.reference_keys(references, still, *dit.rotary(ids[-7:]))
    return dit.velocity_beside(*given, *dit.rotary(ids[:-7]), keys)


def qwen3(backend: Backend, dtype: torch.dtype) -> Tensor:
    model = filled(Qwen3Model(QWEN3, (1, 2), SdpaAttention(), backend.qwen3)).to(DEVICE, dtype)
    backend.prepare("text_encoder", model)
    ids = torch.arange(24, device=DEVICE).view(2, 12) % 50
    return torch.stack(model(ids, AttentionLengths.of((5, 12), 12, torch.device(DEVICE))))


def vae(backend: Backend, dtype: torch.dtype) -> Tensor:
    decoder = filled(VaeDecoder(VAE, backend.vae)).to(DEVICE, dtype)
    backend.prepare("vae", decoder)
    torch.manual_seed(1)
    out: Tensor = decoder(torch.randn(1, 4, 4, 6).to(DEVICE, dtype))
    return out


def encoder(backend: Backend, dtype: torch.dtype) -> Tensor:
    model = filled(VaeEncoder(VAE, backend.vae)).to(DEVICE, dtype)
    backend.prepare("vae", model)
    torch.manual_seed(1)
    image = torch.randn(1, 3, 32, 48).contiguous(memory_format=torch.channels_last)
    out: Tensor = model(image.to(DEVICE, dtype))
    return out


MODELS = [flux2, edit, kept, qwen3, vae, encoder]
Draw = Callable[[Backend, torch.dtype], Tensor]


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Any:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("model", MODELS)
def test_in_float32_nothing_changes(model: Draw) -> None:
    exact = model(PLAIN, torch.float32)
    assert exact.std() > 0.05
    # A GPU multiplies matrices of other shapes, and convolves in another layout, by other kernels.
    limit = 2e-6 if DEVICE == "cpu" else 3e-5
    assert distance(model(on_kernels(), torch.float32), exact) < limit


@pytest.mark.parametrize("model", MODELS)
def test_bfloat16_is_no_further_from_float32(model: Draw) -> None:
    """Kernels round once where torch rounds several times."""
    if model in (vae, encoder) and DEVICE == "cpu":
        pytest.skip("the CPU has no product of half precision into float32")
    exact, dtype = model(PLAIN, torch.float32), torch.bfloat16
    plain, fused = model(PLAIN, dtype), model(on_kernels(), dtype)
    assert fused.dtype == dtype
    assert distance(fused, exact) <= 1.02 * distance(plain, exact)


@pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9),
    reason="no fp8 on this GPU",
)
def test_fp8_by_kernels_is_fp8_by_torch() -> None:
    """Producers that quantise what they have not rounded: as near to float32 as torch's way."""
    exact = flux2(PLAIN, torch.float32)
    plain = backend_for(Settings(device="cpu", kernels="torch", quantize="fp8"))
    by_torch, by_kernels = flux2(plain, torch.bfloat16), flux2(on_kernels("fp8"), torch.bfloat16)
    assert 0.005 < distance(by_kernels, exact) <= 1.1 * distance(by_torch, exact) < 0.1


@pytest.mark.parametrize("quantize", ["none", "fp8"])
def test_heads_that_no_block_fits_are_refused(quantize: str) -> None:
    config = replace(FLUX2, attention_head_dim=24, axes_dims_rope=(6, 6, 6, 6))
    with pytest.raises(ModelError, match="heads of 24") as caught:
        on_kernels(quantize).prepare("transformer", Flux2Transformer(config))
    assert "--kernels torch" in caught.value.hint


@pytest.mark.process
def test_models_are_built_before_triton_is_imported() -> None:
    """Its import, a third of a second, is for the time in which weights are read."""
    script = (
        "import sys\n"
        "from klein_cli.settings import Settings\n"
        "from klein_cli.optimize import backend as t\n"
        "t.Graphs = lambda device: t.direct\n"
        "backend = t.backend_for(Settings(device='cuda', kernels='triton'))\n"
        "before = 'triton' in sys.modules\n"
        "backend.get_ready()\n"
        "sys.exit(before or 'triton' not in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_models_are_not_the_tools_own() -> None:
    """Two models of one process, one fused and one not, do not meet."""
    fused = filled(Flux2Transformer(FLUX2, on_kernels().flux2))
    plain = copy.deepcopy(filled(Flux2Transformer(FLUX2)))
    on_kernels().prepare("transformer", fused)
    assert fused.ops is not plain.ops
    assert plain.state_dict().keys() == filled(Flux2Transformer(FLUX2)).state_dict().keys()
