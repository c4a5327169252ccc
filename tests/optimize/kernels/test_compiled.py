"""The kernels compile for a GPU that is not here, and keep what they work on in registers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from interpreted import NEEDS_TRITON

pytestmark = pytest.mark.process

COMPILE = Path(__file__).parents[2] / "fixtures" / "compile_kernels.py"
KERNELS = {
    *("_modulate", "_rms_norm", "_add_gated", "_gate", "_gate_fp8", "_quantise", "_heads"),
    *("_moments", "_merge", "_apply", "_softmax", "_softmax_whole", "_add_biased", "_interleave"),
}


@NEEDS_TRITON
def test_every_kernel_compiles_without_a_spill() -> None:
    """For Hopper. A kernel that spills is right, and slower than torch."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(COMPILE), "90"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    spilled = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in spilled} == KERNELS
    assert all(count == "0" for _, count in spilled), done.stdout
