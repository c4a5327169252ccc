"""Every command does its work where Triton, flash-attn and torchao are not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

SCRIPT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("triton", "flash_attn", "torchao"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name in ("triton", "flash_attn", "torchao") else find_spec(name, *rest)
)
sys.meta_path.insert(0, Absent())

import json
from klein_cli.cli.app import main
print("codes", json.dumps([main(line) for line in json.loads(sys.argv[1])]))
"""


def run(root: Path, folder: Path, device: str) -> tuple[list[int], str]:
    """Exit codes of a line of commands, and what they said on standard error."""
    common = ["-m", str(root), "--size", "32x32", "--steps", "1", "--device", device]
    picture = str(folder / "out.png")
    (folder / "p.txt").write_text("a cat\na dog\n")
    lines = [
        ["--version"],
        ["generate", "a cat", *common, "-s", "1", "-o", picture, "-v"],
        ["generate", "--prompts-file", str(folder / "p.txt"), *common, "-o", f"{folder}/all/"],
        ["generate", "a cat", *common, "-o", picture, "-y", "--engine", "diffusers"],
        ["generate", "a cat", *common, "-o", picture, "-y", "--attention", "eager"],
        ["generate", "a cat", *common, "-o", picture, "-y", "--attention", "flash-attn"],
        ["generate", "a cat", *common, "-o", picture, "-y", "--kernels", "triton"],
        ["info", picture],
        ["verify", *common],
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(lines)],
        capture_output=True,
        text=True,
        check=True,
    )
    last = done.stdout.splitlines()[-1]
    return json.loads(last.removeprefix("codes ")), done.stderr


def test_on_a_cpu(small_snapshot: Path, tmp_path: Path) -> None:
    codes, said = run(small_snapshot, tmp_path, "cpu")
    assert codes == [0, 0, 0, 0, 0, 2, 2, 0, 0], said
    assert "kernels torch" in said


@pytest.mark.gpu
def test_on_a_gpu(small_snapshot: Path, tmp_path: Path) -> None:
    codes, said = run(small_snapshot, tmp_path, "cuda")
    assert codes == [0, 0, 0, 0, 0, 2, 2, 0, 0], said
    assert "off: fused kernels (Triton is not installed)" in said
    assert "flash-attn is not installed" in said
