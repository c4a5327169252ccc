"""What the whole suite shares: a small random snapshot, and the skipping of slow and GPU tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# As `klein` does for itself: spinning threads make a busy machine several times as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Nobody's settings file changes what the tests see.
os.environ["XDG_CONFIG_HOME"] = os.devnull
# And nobody's engine draws for them.
os.environ["KLEIN_HOST"] = "/nonexistent/engine.sock"

_IN_ITS_OWN = "KLEIN_TEST_IN_ITS_OWN_PROCESS"


def pytest_addoption(parser: pytest.Parser) -> None:
    """--full-size FOLDER: where the 16 GB snapshot of the slow tests lies, or is to be written."""
    parser.addoption("--full-size", metavar="FOLDER", type=Path)


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device, and `slow` ones unless asked for."""
    for item in items:
        if item.get_closest_marker("own_process"):
            item.add_marker("process")
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


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Tests marked `own_process` run in one: other tests hold memory that these would measure."""
    if not pyfuncitem.get_closest_marker("own_process") or os.environ.get(_IN_ITS_OWN):
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-m", "own_process", pyfuncitem.nodeid]
    done = subprocess.run(
        command,
        cwd=pyfuncitem.config.rootpath,
        env={**os.environ, _IN_ITS_OWN: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    return True


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def klein(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `klein` with these arguments in this process -> (exit code, stdout, stderr)."""
    from klein_cli.cli.app import main

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(scope="session")
def small_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled FLUX.2 [klein] in miniature with random weights; tests must not change it."""
    return _written(tmp_path_factory, distilled=True)


@pytest.fixture(scope="session")
def small_base_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, not distilled: guidance counts."""
    return _written(tmp_path_factory, distilled=False)


@pytest.fixture(scope="session")
def edit_snapshot(small_snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small snapshot, sharpened so that it shows what is wrong with an edit."""
    from edit_models import sharpened

    return sharpened(small_snapshot, tmp_path_factory.mktemp("snapshots") / "edit")


@pytest.fixture(scope="session")
def random_snapshot(small_snapshot: Path) -> str:
    """The folder of a small model that draws coloured noise, 16 to 4096 pixels a side."""
    return str(small_snapshot)


@pytest.fixture(scope="session")
def medium_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads and dtype of the true model, for tests on a GPU; tests must not change it."""
    from make_snapshot import write_snapshot

    root = tmp_path_factory.mktemp("snapshots") / "medium"
    write_snapshot(root, "medium")
    return root


@pytest.fixture(scope="session")
def full_size_snapshot(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The 4B at its true sizes with random weights, 16 GB: for tests marked `gpu` and `slow`."""
    from make_snapshot import write_snapshot

    kept: Path | None = pytestconfig.getoption("--full-size")
    root = kept or tmp_path_factory.mktemp("snapshots") / "4b"
    if not (root / "model_index.json").is_file():
        write_snapshot(root, "4b")
    return root


def _written(tmp_path_factory: pytest.TempPathFactory, *, distilled: bool) -> Path:
    from make_snapshot import write_snapshot

    root = tmp_path_factory.mktemp("snapshots") / ("small" if distilled else "small-base")
    write_snapshot(root, "small", distilled=distilled)
    return root
