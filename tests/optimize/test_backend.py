"""A backend follows from settings; on a CPU it is plain torch, and nothing else is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from small_models import FLUX2, filled, flux2_inputs

from klein_cli.device.device import device_for
from klein_cli.models.flux2 import Flux2Transformer
from klein_cli.optimize.backend import PLAIN, backend_for, device_context
from klein_cli.optimize.graphs import direct
from klein_cli.settings import Settings


def test_a_cpu_computes_in_plain_torch() -> None:
    backend = backend_for(Settings(device="cpu", kernels="torch"))
    assert backend.run is direct
    assert {type(backend.flux2), type(backend.qwen3), type(backend.vae)} == {
        type(PLAIN.flux2),
        type(PLAIN.qwen3),
        type(PLAIN.vae),
    }
    dit = filled(Flux2Transformer(FLUX2, backend.flux2))
    before = dit(*flux2_inputs(torch.float32))
    backend.prepare("transformer", dit)
    assert torch.equal(dit(*flux2_inputs(torch.float32)), before)
    backend.run.clear()
    with device_context(device_for("cpu")):
        assert torch.equal(dit(*flux2_inputs(torch.float32)), before)


@pytest.mark.process
@pytest.mark.parametrize("quantize", ["none", "fp8"])
def test_plain_torch_imports_no_triton(quantize: str) -> None:
    script = (
        "import sys\n"
        "from klein_cli.settings import Settings\n"
        "from klein_cli.optimize.backend import backend_for\n"
        "from klein_cli.models.flux2 import Flux2Ops\n"
        f"backend_for(Settings(device='cpu', kernels='torch', quantize={quantize!r}))\n"
        "sys.exit('triton' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.gpu
def test_the_order_of_attention_kernels_is_put_back() -> None:
    before = torch._C._get_sdp_priority_order()
    with device_context(device_for("cuda")):
        pass
    assert torch._C._get_sdp_priority_order() == before
