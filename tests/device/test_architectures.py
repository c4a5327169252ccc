"""What code runs on what GPU, as NVIDIA's compiler names both."""

from __future__ import annotations

import pytest

from klein_cli.device.architectures import built_for


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_80", "sm_86", "sm_90"], True),
        ((8, 0), ["sm_86", "sm_90"], False),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "compute_90"], True),
        ((7, 5), ["sm_80", "compute_80"], False),
        ((9, 0), ["sm_90a"], True),
        ((12, 1), ["sm_120a"], False),
        ((9, 1), ["sm_90a"], False),
        ((9, 0), ["compute_90a"], True),
        ((12, 0), ["compute_90a"], False),
        ((10, 3), ["sm_100a"], False),
        ((10, 3), ["sm_100f"], True),
        ((10, 0), ["sm_103f"], False),
        ((12, 0), ["compute_100f"], False),
        ((12, 1), ["sm_120f"], True),
        ((9, 0), ["sm_80", "sm_90a", "sm_100a"], True),
        ((9, 0), ["sm_", "sm_x", "sm_9"], False),
        ((9, 0), [], False),
        ((9, 0), ["gfx942"], False),
    ],
)
def test_what_a_build_of_torch_runs_on(
    capability: tuple[int, int], architectures: list[str], runs: bool
) -> None:
    """A letter binds code to one GPU or family: counted as plain, it fails at the first kernel."""
    assert built_for(capability, architectures) is runs
