"""What is said of a GPU, its driver and torch, for each way in which they do not fit together."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from klein_cli.check.finding import BAD, NOTE, OK
from klein_cli.check.gpu import Driver, Gpu, check_gpu, check_torch, driver

GB = 10**9
H100 = Gpu(
    name="NVIDIA H100 80GB HBM3",
    driver="580.82.07",
    total=85 * GB,
    free=80 * GB,
    capability=(9, 0),
)
HERE = Driver(gpus=(H100,))
NONE = Driver()
SEEN = {"name": H100.name, "capability": [9, 0], "free": 80 * GB, "total": 85 * GB}


def facts(**changes: Any) -> dict[str, Any]:
    """What a torch that works says of itself."""
    return {
        "version": "2.13.0+cu130",
        "cuda": "13.0",
        "hip": None,
        "available": True,
        "built for": ["sm_80", "sm_90", "sm_100", "compute_120"],
        "threads": 16,
        "gpus": [SEEN],
        "cudnn": 91400,
        **changes,
    }


def script(folder: Path, body: str) -> None:
    """An nvidia-smi that does what `body` says."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder where programs are found, besides /bin for the shell's own."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    return tmp_path


@pytest.mark.process
def test_without_nvidia_smi_there_is_no_driver(path: Path) -> None:
    assert driver() == NONE


@pytest.mark.process
def test_gpus_are_read_from_nvidia_smi(path: Path) -> None:
    line = "NVIDIA H100 80GB HBM3, 580.82.07, 81559, 81007, 9.0"
    odd = "NVIDIA RTX A6000, Ada, 580.82.07, 49140, 1, 12.0"
    script(path, f"echo '{line}'; echo '{odd}'")
    first, second = driver().gpus
    assert (first.name, first.driver, first.capability) == (H100.name, H100.driver, (9, 0))
    assert first.total == 81559 * 2**20
    assert (second.name, second.free) == ("NVIDIA RTX A6000, Ada", 2**20)


@pytest.mark.process
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "Driver/library version mismatch",
        ),
        ("echo 'No devices were found'; exit 6", "No devices were found"),
        ("exit 9", "ends with 9"),
        ("echo what, is, this", "what, is, this"),
        ("echo 'a, b, [N/A], [N/A], 9.0'", "[N/A]"),
    ],
)
def test_a_driver_that_is_out_of_order_is_quoted(path: Path, body: str, words: str) -> None:
    script(path, body)
    found = driver()
    assert words in found.error
    finding = check_gpu(found, {}, 14.1)
    assert finding.state == BAD
    assert words in finding.said
    assert finding.hint


@pytest.mark.process
def test_a_driver_that_hangs_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klein_cli.check.gpu._SECONDS", 0.2)
    script(path, "exec sleep 60")
    assert "does not answer" in driver().error


def test_a_gpu_is_named_with_its_free_memory() -> None:
    finding = check_gpu(HERE, facts(), 14.1)
    assert finding.state == OK
    assert finding.said == "NVIDIA H100 80GB HBM3, 80 of 85 GB free, driver 580.82.07"


def test_in_a_container_without_nvidia_smi_torch_names_the_gpu() -> None:
    assert check_gpu(NONE, facts(), 14.1).said == "NVIDIA H100 80GB HBM3, 80 of 85 GB free"


@pytest.mark.parametrize(
    ("free", "total", "hint"), [(3, 24, "close the programs"), (7, 8, "tiny does")]
)
def test_too_little_memory_is_worth_a_note(free: int, total: int, hint: str) -> None:
    small = Gpu(name="A", driver="1", total=total * GB, free=free * GB, capability=(8, 9))
    finding = check_gpu(Driver(gpus=(small,)), facts(), 14.1)
    assert finding.state == NOTE
    assert "14.1 GB" in finding.said
    assert hint in finding.hint


def test_no_gpu_is_no_fault() -> None:
    assert check_gpu(NONE, facts(available=False, gpus=[]), 14.1).state == NOTE
    assert check_torch(NONE, facts(available=False, gpus=[])).state == OK
    mac = check_gpu(NONE, facts(available=False, gpus=[], mps=True), 14.1)
    assert (mac.state, "--device mps" in mac.said, "tried" in mac.said) == (NOTE, True, True)
    assert check_torch(NONE, facts(available=False, gpus=[], cuda=None)).state == OK


@pytest.mark.parametrize(
    ("found", "torch", "said", "hint"),
    [
        (HERE, {"error": "ImportError: libcudart.so.13"}, "libcudart.so.13", "install it again"),
        (HERE, facts(available=False, cuda=None), "is the CPU build", "the CUDA build"),
        (
            HERE,
            facts(available=False, why="The NVIDIA driver on your system is too old"),
            "driver on your system is too old",
            "update the driver (580.82.07)",
        ),
        (HERE, facts(available=False), "does not say why", "CUDA_VISIBLE_DEVICES"),
        (HERE, facts(**{"built for": ["sm_80", "sm_100"]}), "no code for the NVIDIA H100", "torch"),
    ],
)
def test_a_torch_that_does_not_fit(
    found: Driver, torch: dict[str, Any], said: str, hint: str
) -> None:
    finding = check_torch(found, torch)
    assert finding.state == BAD
    assert said in finding.said
    assert hint in finding.hint


@pytest.mark.parametrize(
    ("built_for", "capability", "runs"),
    [
        (["sm_86"], (8, 9), True),
        (["sm_89"], (8, 6), False),
        (["sm_90a"], (9, 0), True),
        (["sm_90a"], (9, 1), False),
        (["compute_90a"], (12, 0), False),
        (["sm_100a"], (10, 3), False),
        (["sm_90"], (10, 0), False),
        (["compute_90"], (12, 0), True),
        (["sm_120"], (12, 0), True),
        ([], (1, 0), True),
    ],
)
def test_code_for_one_gpu_runs_on_its_kin(
    built_for: list[str], capability: tuple[int, int], runs: bool
) -> None:
    """Minor versions are forward compatible; only PTX (compute_) reaches the next major one."""
    gpu = {**SEEN, "capability": list(capability)}
    finding = check_torch(HERE, facts(**{"built for": built_for, "gpus": [gpu]}))
    assert (finding.state == OK) == runs


@pytest.mark.process
@pytest.mark.gpu
def test_the_driver_and_torch_agree_on_a_real_machine() -> None:
    import torch

    from klein_cli.check.probes import torch_facts

    if subprocess.run(["nvidia-smi"], capture_output=True, check=False).returncode:
        pytest.skip("no nvidia-smi")
    found, said = driver(), torch_facts()
    assert not found.error
    assert len(found.gpus) >= torch.cuda.device_count()
    assert found.gpus[0].capability == tuple(said["gpus"][0]["capability"])
    assert check_gpu(found, said, 1.0).state == OK
    assert check_torch(found, said).state == OK
