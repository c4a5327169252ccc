"""Every `auto` decided, every combination that cannot run refused, on machines made up here."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from klein_cli.device import choose as device_choice
from klein_cli.device.choose import (
    choose,
    missing_speedups,
    no_tf32,
    provenance,
)
from klein_cli.errors import KleinError, ModelError, UsageError
from klein_cli.presets import presets, unnamed_preset
from klein_cli.settings import Settings


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the newer kind, on a machine where Triton is at home."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(device_choice, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])


@pytest.mark.usefixtures("without_gpu")
def test_auto_without_a_gpu() -> None:
    chosen = choose(Settings(), presets()["tiny"])
    assert chosen == Settings(device="cpu", dtype="float32", attention="sdpa", kernels="torch")
    assert choose(chosen) == chosen
    assert choose(Settings(), unnamed_preset("folder", distilled=True)).device == "cpu"


@pytest.mark.usefixtures("with_two_gpus")
def test_auto_with_a_gpu() -> None:
    chosen = choose(Settings(), presets()["klein-4b"])
    wanted = Settings(device="cuda", dtype="bfloat16", attention="sdpa", kernels="triton")
    assert choose(chosen) == chosen == wanted
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
        ({"device": "cuda"}, "--device cuda is not available: "),
        ({"device": "cuda:0"}, "--device cuda:0 is not available: "),
        ({"device": "mps"}, "--device mps is not available: "),
        ({"device": "mps:0"}, "is not valid"),
        ({"device": "cuda:x"}, "is not valid"),
        ({"attention": "flash-attn"}, "CUDA only"),
        ({"rng": "cuda"}, "--rng cuda needs"),
        ({"dtype": "float64"}, "--dtype float64"),
        ({"engine": "comfy"}, "--engine comfy"),
        ({"attention": "flex"}, "--attention flex"),
        ({"rng": "mps"}, "--rng mps"),
        ({"kernels": "cuda"}, "--kernels cuda"),
        ({"kernels": "triton"}, "need an NVIDIA GPU"),
        ({"quantize": "int8"}, "--quantize int8"),
        ({"quantize": "fp8"}, "fp8 needs an NVIDIA GPU"),
    ],
)
def test_what_cannot_run_is_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        choose(Settings(**settings))
    assert caught.value.hint


@pytest.mark.usefixtures("with_two_gpus")
@pytest.mark.parametrize(
    "device",
    ["cuda:01", "cuda:00", "cuda:100", "cuda:256", "cuda:\u0661", "cuda:-1", "cuda:1 ", "cuda:1\n"],
)
def test_a_number_that_torch_reads_otherwise_is_no_gpu(device: str) -> None:
    """torch takes cuda:256 for cuda:0, and answers cuda:01 with a traceback."""
    with pytest.raises(UsageError, match="is not valid"):
        choose(Settings(device=device))


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("cuda", "torch_says", "what", "todo"),
    [
        (None, None, f"torch {torch.__version__} is built without CUDA", "install another"),
        (
            "13.0",
            "The NVIDIA driver on your system is too old (found version 11040). Please update it.",
            "The NVIDIA driver on your system is too old (found version 11040)",
            "get a torch for your driver",
        ),
        ("13.0", "No CUDA GPUs are available", "No CUDA GPUs are available", "nvidia-smi"),
        ("13.0", None, "torch finds none", "nvidia-smi"),
    ],
)
def test_why_there_is_no_gpu_is_said(
    monkeypatch: pytest.MonkeyPatch,
    cuda: str | None,
    torch_says: str | None,
    what: str,
    todo: str,
) -> None:
    """A torch without CUDA beside a good GPU, or with a newer CUDA than the driver's."""

    def init() -> None:
        if torch_says:
            raise RuntimeError(torch_says)

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(UsageError) as caught:
        choose(Settings(device="cuda"))
    assert caught.value.message == f"--device cuda is not available: {what}"
    assert todo in caught.value.hint
    assert "--device cpu" in caught.value.hint
    with pytest.raises(ModelError, match=re.escape(f"no GPU was found ({what})")):
        choose(Settings(), presets()["klein-4b"])


@pytest.mark.usefixtures("with_two_gpus")
def test_a_gpu_that_torch_is_not_built_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the first kernel says that it has no image, in the middle of a traceback."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a new GPU")
    with pytest.raises(UsageError, match=r"is not built for a new GPU .*12\.0") as caught:
        choose(Settings())
    assert "https://pytorch.org" in caught.value.hint


@pytest.mark.gpu
def test_this_gpu_is_one_that_torch_is_built_for() -> None:
    assert choose(Settings(device="cuda")).device == "cuda"


@pytest.mark.usefixtures("with_two_gpus")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "cuda:2"}, "cuda:2 is not available"),
        ({"device": "cuda", "dtype": "float32", "attention": "flash-attn"}, "float32"),
        ({"device": "cpu", "rng": "cuda"}, "--rng cuda needs"),
        ({"quantize": "fp8", "dtype": "float16"}, "bfloat16, not float16"),
        ({"quantize": "fp8", "engine": "diffusers"}, "native engine"),
        ({"quantize": "fp8", "device": "cpu"}, "fp8 needs an NVIDIA GPU"),
    ],
)
def test_what_cannot_run_on_a_gpu_is_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(KleinError, match=words):
        choose(Settings(**settings))


@pytest.mark.usefixtures("with_two_gpus")
@pytest.mark.parametrize(
    ("owner", "name", "value", "reason"),
    [
        (device_choice, "find_spec", lambda name: None, "Triton is not installed"),
        (shutil, "which", lambda name: None, "no C compiler"),
        (Path, "is_file", lambda path: False, "no Python.h"),
        (torch.version, "cuda", None, "CUDA only"),
        (torch.cuda, "get_device_capability", lambda device: (7, 5), "Some GPU is too old"),
    ],
)
def test_where_triton_cannot_run_torch_computes(
    owner: object, name: str, value: object, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slim container has no compiler: found out now, not in the middle of an image."""
    monkeypatch.setattr(owner, name, value)
    monkeypatch.delenv("CC", raising=False)
    chosen = choose(Settings())
    assert chosen.kernels == "torch"
    (off,) = missing_speedups(chosen)
    assert reason in off
    with pytest.raises(UsageError, match=reason):
        choose(Settings(kernels="triton"))


@pytest.mark.usefixtures("with_two_gpus")
def test_what_is_off_is_named() -> None:
    assert missing_speedups(choose(Settings())) == []
    assert missing_speedups(choose(Settings(device="cpu"))) == []
    assert "--kernels torch" in " ".join(missing_speedups(choose(Settings(kernels="torch"))))
    assert "--engine diffusers" in " ".join(missing_speedups(choose(Settings(engine="diffusers"))))


@pytest.mark.usefixtures("with_two_gpus")
def test_fp8_needs_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(Settings(quantize="fp8")).quantize == "fp8"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert choose(Settings(quantize="fp8")).quantize == "fp8"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(UsageError, match=r"Some GPU cannot compute in fp8.*8\.9"):
        choose(Settings(quantize="fp8"))


def test_provenance_says_what_can_change_a_bit() -> None:
    record = provenance(choose(Settings(device="cpu", engine="diffusers")))
    assert record["torch"] == torch.__version__
    assert record["threads"] == str(torch.get_num_threads())
    assert {"klein", "diffusers", "device name", "cpu capability"} <= record.keys()
    assert all(isinstance(value, str) for value in record.values())


def test_precision_is_put_back() -> None:
    before = torch.backends.cudnn.allow_tf32
    with no_tf32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.process
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
