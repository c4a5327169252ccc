"""Every command does its work where Triton, flash-attn and torchao are not installed; those that
need the official pipeline say so where that is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from klein_cli.output.reading import read_record

pytestmark = pytest.mark.process

SCRIPT = """
import importlib.metadata, json, sys

absent = json.loads(sys.argv[2])
version = importlib.metadata.version
def version_of(name):
    if name in absent:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = version_of

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name in absent else find_spec(name, *rest)
)
sys.meta_path.insert(0, Absent())

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
    return codes_of(lines, ("triton", "flash_attn", "torchao"))


def codes_of(lines: list[list[str]], absent: tuple[str, ...]) -> tuple[list[int], str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(lines), json.dumps(absent)],
        capture_output=True,
        text=True,
        check=True,
    )
    last = done.stdout.splitlines()[-1]
    return json.loads(last.removeprefix("codes ")), done.stderr


@pytest.mark.process
def test_without_the_official_pipeline(small_snapshot: Path, tmp_path: Path) -> None:
    """klein draws by itself; what compares with diffusers, or runs it, is refused with the way."""
    common = ["-m", str(small_snapshot), "--size", "32x32", "--device", "cpu"]
    picture = str(tmp_path / "out.png")
    lines = [
        ["generate", "a cat", *common, "--steps", "1", "-s", "1", "-o", picture],
        ["info", picture],
        ["reproduce", picture, "-m", str(small_snapshot), "-o", f"{tmp_path}/again.png"],
        ["generate", "a cat", *common, "-o", picture, "-y", "--engine", "diffusers"],
        ["verify", *common],
        ["bench", *common, "--peer", "--quick"],
        ["bench"],
    ]
    codes, said = codes_of(lines, ("diffusers", "transformers"))
    assert codes == [0, 0, 0, 2, 2, 2, 2], said
    refused = [line for line in said.splitlines() if line.startswith(("error: ", "hint: "))]
    assert len(refused) == 8
    for error, hint in zip(refused[::2], refused[1::2], strict=True):
        assert error.endswith("needs diffusers and transformers, which are not installed")
        assert hint == "hint: pip install 'klein-cli[official]'"
    assert "differs" not in said
    record = read_record(Path(picture))
    assert "diffusers" not in record.provenance
    assert record.provenance["torch"]


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
