"""Every `auto` decided, every combination that cannot run refused, on machines made up here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from klein_cli.errors import KleinError, ModelError, UsageError
from klein_cli.machine import choose, full_precision, is_out_of_memory, provenance
from klein_cli.presets import presets, unnamed_preset
from klein_cli.recipe import Settings


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("without_gpu")
def test_auto_without_a_gpu() -> None:
    chosen = choose(Settings(), presets()["tiny"])
    assert chosen == Settings(device="cpu", dtype="float32", attention="sdpa")
    assert choose(chosen) == chosen
    assert choose(Settings(), unnamed_preset("folder", distilled=True)).device == "cpu"


@pytest.mark.usefixtures("with_two_gpus")
def test_auto_with_a_gpu() -> None:
    chosen = choose(Settings(), presets()["klein-4b"])
    assert chosen == Settings(device="cuda", dtype="bfloat16", attention="sdpa")
    assert choose(Settings(device="cuda:1", rng="cuda")).device == "cuda:1"
    assert choose(Settings(device="cpu")).dtype == "float32"


@pytest.mark.usefixtures("without_gpu")
def test_a_full_size_model_without_a_gpu_is_refused_unless_asked_for() -> None:
    with pytest.raises(ModelError, match="no GPU was found") as caught:
        choose(Settings(), presets()["klein-4b"])
    assert "--model tiny" in caught.value.hint
    assert "--device cpu" in caught.value.hint
    assert choose(Settings(device="cpu"), presets()["klein-4b"]).device == "cpu"


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(device="cuda"), "no CUDA device was found"),
        (Settings(device="cuda:0"), "no CUDA device was found"),
        (Settings(device="mps"), "no device called 'mps'"),
        (Settings(device="cuda:x"), "no device called"),
        (Settings(attention="flash-attn"), "CUDA only"),
        (Settings(rng="cuda"), "--rng cuda needs"),
        (Settings(dtype="float64"), "--dtype float64"),
        (Settings(engine="comfy"), "--engine comfy"),
        (Settings(attention="flex"), "--attention flex"),
        (Settings(rng="mps"), "--rng mps"),
    ],
)
def test_what_cannot_run_is_refused(settings: Settings, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        choose(settings)
    assert caught.value.hint


@pytest.mark.usefixtures("with_two_gpus")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(device="cuda:2"), "no cuda:2"),
        (Settings(device="cuda", dtype="float32", attention="flash-attn"), "float32"),
        (Settings(device="cpu", rng="cuda"), "--rng cuda needs"),
    ],
)
def test_what_cannot_run_on_a_gpu_is_refused(settings: Settings, words: str) -> None:
    with pytest.raises(KleinError, match=words):
        choose(settings)


def test_provenance_says_what_can_change_a_bit() -> None:
    assert "diffusers" not in provenance(choose(Settings(device="cpu", engine="native")))
    record = provenance(choose(Settings(device="cpu", engine="diffusers")))
    assert record["torch"] == torch.__version__
    assert record["threads"] == str(torch.get_num_threads())
    assert {"klein", "diffusers", "device name", "cpu capability"} <= record.keys()
    assert all(isinstance(value, str) for value in record.values())


def test_precision_is_put_back() -> None:
    before = torch.backends.cudnn.allow_tf32
    with full_precision():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_running_out_of_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_importing_the_pipeline_changes_nothing_global(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = (
        "import torch\n"
        "def state():\n"
        "    return (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),\n"
        "            torch.backends.cudnn.allow_tf32, torch.get_rng_state().sum().item(),\n"
        "            torch.get_float32_matmul_precision())\n"
        "before = state()\n"
        "import klein_cli.pipeline\n"
        "import klein_cli.engines.diffusers\n"
        "assert state() == before\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
