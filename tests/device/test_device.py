"""The kinds of device: what holds for each, and a Mac's GPU that is made up here."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from klein_cli.device.choose import choose, missing_speedups, provenance
from klein_cli.device.device import KINDS, Memory, device_for
from klein_cli.errors import ModelError
from klein_cli.presets import presets
from klein_cli.settings import CHOICES, Settings


def test_every_device_that_may_be_asked_for_is_a_row() -> None:
    assert set(CHOICES["device"].words) == {"auto", *KINDS}
    assert {name: device_for(name).kind for name in ("cpu", "mps", "cuda", "cuda:3")} == {
        "cpu": "cpu",
        "mps": "mps",
        "cuda": "cuda",
        "cuda:3": "cuda",
    }
    assert device_for(torch.device("cuda", 1)).name == "cuda:1"
    assert device_for("cuda:1").torch_device == torch.device("cuda", 1)


@pytest.mark.process
def test_which_device_it_is_needs_no_torch() -> None:
    """Whoever only starts workers would wait three seconds for torch."""
    script = (
        "import sys\n"
        "from klein_cli.device.device import device_for\n"
        "assert device_for('cuda:1').graphs and not device_for('cpu').is_gpu\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_only_a_gpu_of_nvidia_computes_images_together() -> None:
    """A batch's products round otherwise than one image's, unless that was seen not to be so."""
    together = {name for name, kind in KINDS.items() if not kind.one_by_one}
    assert together == {"cuda"}


@pytest.fixture
def on_a_mac(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A Mac with a GPU of 16 GB, of which 4 are taken; the devices that are waited for."""
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 4 * 10**9)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(torch.accelerator, "synchronize", asked.append)
    return asked


def test_a_macs_gpu_is_used_when_it_is_asked_for(on_a_mac: list[torch.device]) -> None:
    chosen = choose(Settings(device="mps"), presets()["klein-4b"])
    assert chosen == Settings(device="mps", dtype="bfloat16", attention="sdpa", kernels="torch")
    assert choose(Settings(device="mps", dtype="float32")).dtype == "float32"
    assert missing_speedups(chosen) == []
    record = provenance(chosen)
    assert (record["device name"], record["macos"]) == ("arm64", "15.1")
    assert not {"cuda", "cpu capability"} & record.keys()


def test_a_macs_gpu_has_no_float64_and_no_kernels_of_ours(on_a_mac: list[torch.device]) -> None:
    device = device_for("mps")
    assert device.rope_on_host
    assert not any((device.triton, device.graphs, device.fp8, device.streams))
    assert device.memory() == Memory(free=12 * 10**9, total=16 * 10**9)
    device.synchronize()
    device_for("cpu").synchronize()
    assert on_a_mac == [torch.device("mps")]


def test_auto_takes_no_gpu_that_klein_was_never_tried_on(on_a_mac: list[torch.device]) -> None:
    assert choose(Settings(), presets()["tiny"]).device == "cpu"
    with pytest.raises(ModelError, match="no GPU was found") as caught:
        choose(Settings(), presets()["klein-4b"])
    assert "--device mps (untested)" in caught.value.hint


@pytest.mark.gpu
def test_a_gpu_says_what_memory_it_has() -> None:
    device = device_for("cuda")
    with device.current():
        found = device.memory()
    assert found is not None
    assert 0 < found.free <= found.total
