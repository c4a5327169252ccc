"""What the whole suite shares: a small random snapshot, and the skipping of slow and GPU tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read by OpenMP when torch is first imported. Its idle threads would spin: on a machine that does
# anything else beside, a test takes many times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device, and `slow` ones unless asked for."""
    if "slow" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("slow") and not item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="slow: pytest -m slow"))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def small_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled FLUX.2 [klein] in miniature with random weights; tests must not change it."""
    return _written(tmp_path_factory, distilled=True)


@pytest.fixture(scope="session")
def small_base_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, not distilled: guidance counts."""
    return _written(tmp_path_factory, distilled=False)


def _written(tmp_path_factory: pytest.TempPathFactory, *, distilled: bool) -> Path:
    from make_snapshot import write_snapshot

    root = tmp_path_factory.mktemp("snapshots") / ("small" if distilled else "small-base")
    write_snapshot(root, "small", distilled=distilled)
    return root
