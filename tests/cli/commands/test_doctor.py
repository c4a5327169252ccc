"""`klein doctor` as it is run, on an installation that works and on broken ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process

PACKAGE = Path(__file__).parents[3] / "klein_cli"
CONFIGS = PACKAGE.parent / "configs"
SECRET = "hf_a_secret_token"


def doctor(
    home: Path, *arguments: str, **changes: str
) -> tuple[int, subprocess.CompletedProcess[str]]:
    """Run it with `home` as home and working folder, and no GPU tools but those in `changes`."""
    env = {
        "HOME": str(home),
        "PATH": "/bin",
        "HF_TOKEN": SECRET,
        "HF_ENDPOINT": f"https://somebody:{SECRET}@mirror.example",
        "OMP_NUM_THREADS": "1",
        **changes,
    }
    command = [sys.executable, "-m", "klein_cli", "doctor", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=env, cwd=home, timeout=300
    )
    return done.returncode, done


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    report = json.loads(done.stdout)
    return {finding["name"]: finding for finding in report["findings"]}


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A copy of the package, to be damaged; on PYTHONPATH it goes before the real one."""
    copy = tmp_path / "installation"
    shutil.copytree(PACKAGE, copy / "klein_cli", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CONFIGS, copy / "configs")
    return copy


def test_an_installation_that_works_is_well_on_one_screen(tmp_path: Path) -> None:
    code, done = doctor(tmp_path)
    assert code == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] == "all is well"
    assert len(lines) <= 24
    named = ("klein", "packages", "GPU", "torch", "tiny", "sdpa", "eager", "mask", "picture")
    for name in (*named, "edit"):
        assert any(line[6:].startswith(name) for line in lines), name
    assert done.stderr == ""


def test_the_report_for_a_bug_holds_no_secret_and_no_home(tmp_path: Path) -> None:
    code, done = doctor(tmp_path, "--json")
    assert code == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["passed"] is True
    said = findings(done)
    assert said["picture"]["data"]["max_abs_diff"] <= 2
    assert said["klein"]["data"]["token"] is True
    assert said["klein"]["data"]["settings"]["HF_ENDPOINT"] == "https://mirror.example"
    assert said["pictures' disk"]["data"]["folder"] == "~"
    assert SECRET not in done.stdout
    assert str(tmp_path) not in done.stdout


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ImportError('libcublas.so.13: cannot open shared object file')", "libcublas.so.13"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "crashed with SIGILL"),
    ],
    ids=["cannot be imported", "crashes"],
)
def test_a_broken_torch_is_named_and_the_rest_looked_at(
    tmp_path: Path, body: str, words: str
) -> None:
    (tmp_path / "broken" / "torch").mkdir(parents=True)
    (tmp_path / "broken" / "torch" / "__init__.py").write_text(body)
    code, done = doctor(tmp_path, "--json", PYTHONPATH=str(tmp_path / "broken"))
    assert code == 1
    said = findings(done)
    assert said["torch"]["state"] == "bad"
    assert words in said["torch"]["said"]
    assert "pytorch.org" in said["torch"]["hint"]
    assert said["tiny"]["state"] == said["models' disk"]["state"] == "ok"
    assert said["pictures"]["state"] == "skipped"


def test_a_gpu_with_the_cpu_build_of_torch(tmp_path: Path) -> None:
    """The commonest fault of all: the driver sees a GPU, and torch was built for none."""
    import torch

    if torch.version.cuda is not None:
        pytest.skip("torch is not the CPU build")
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, 570.86.10, 24564, 24210, 8.9'\n")
    tool.chmod(0o755)
    code, done = doctor(tmp_path, PATH=f"{tool.parent}:/bin")
    assert code == 1
    assert "is the CPU build, and there is a NVIDIA GeForce RTX 4090" in done.stdout
    assert "-> install the CUDA build" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 thing to fix"


@pytest.mark.parametrize("fault", ["cut short", "a bit flipped", "gone"])
def test_a_damaged_tiny(installation: Path, tmp_path: Path, fault: str) -> None:
    path = installation / "klein_cli/tiny/transformer/diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    if fault == "gone":
        shutil.rmtree(path.parents[1])
    else:
        data[-1000] ^= 0x80
        path.write_bytes(data[: len(data) // 2] if fault == "cut short" else data)
    code, done = doctor(tmp_path, "--json", PYTHONPATH=str(installation))
    assert code == 1
    said = findings(done)
    assert said["tiny"]["state"] == "bad"
    assert "klein-cli again" in said["tiny"]["hint"]
    assert said["sdpa"]["state"] == "ok"
    if fault != "a bit flipped":
        assert said["picture"]["state"] == "bad"
    assert "Traceback" not in done.stdout + done.stderr


def test_a_package_that_is_missing_is_named(installation: Path, tmp_path: Path) -> None:
    """Another fault in the way of looking is told as well, and does not end it."""
    hub = tmp_path / "without" / "huggingface_hub"
    hub.mkdir(parents=True)
    (hub / "__init__.py").write_text("raise ImportError('no module named httpx')")
    code, done = doctor(tmp_path, "--json", PYTHONPATH=str(hub.parent))
    assert code == 1
    said = findings(done)
    assert "no module named httpx" in said["models' disk"]["said"]
    assert said["picture"]["state"] == "ok"


def test_looking_for_help_starts_no_torch() -> None:
    script = (
        "import sys; from klein_cli.cli.app import main; code = main(['doctor', '--help']);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    env = {**os.environ, "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=env)
