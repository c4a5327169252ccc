"""Triton's kernels on the CPU, in Triton's interpreter: a process of its own, as it has to be asked
for before Triton is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from interpreted import NEEDS_TRITON

pytestmark = pytest.mark.process

HERE = Path(__file__).parent


@NEEDS_TRITON
@pytest.mark.parametrize("file", ["test_kernels.py", "test_ops.py"])
def test_in_the_interpreter(file: str) -> None:
    command = [sys.executable, "-m", "pytest", str(HERE / file), "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=HERE.parents[2], check=False
    )
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 5
