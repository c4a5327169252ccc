"""Random weights on disk: there for the run, then gone or kept; never where there is no room."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from klein_cli.bench import random_model as module
from klein_cli.bench.random_model import random_model
from klein_cli.bench.random_weights import snapshot_bytes
from klein_cli.checkpoints.resolve import Snapshot, resolve
from klein_cli.errors import KleinError


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SIZE", "small")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_temporary_one_is_gone_afterwards(tmp_path: Path) -> None:
    said: list[str] = []
    with random_model(None, said.append) as snapshot:
        root = snapshot.root
        assert resolve(str(root)).preset.distilled
        assert snapshot.name == "random weights at the sizes of klein-4b"
        assert root.is_relative_to(tmp_path)
    assert not root.exists()
    assert "GB of random weights" in said[0]
    assert str(root) in said[0]


def test_it_goes_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), random_model(None, print) as snapshot:
        _fail(snapshot)
    assert list(tmp_path.glob("klein-bench-*")) == []


def test_a_kept_one_stays(tmp_path: Path) -> None:
    with random_model(tmp_path / "new" / "model", print):
        pass
    assert resolve(str(tmp_path / "new" / "model")).preset.distilled


def test_no_room_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    folder = tmp_path / "model"
    with (
        pytest.raises(KleinError, match=r"has 0\.0 GB free") as caught,
        random_model(folder, print),
    ):
        pass
    assert "--keep" in caught.value.hint
    assert not folder.exists()


_FULL_DISK = """
import sys
from pathlib import Path
from klein_cli.bench import random_model as module
from klein_cli.errors import KleinError
module.SIZE = "small"
try:
    with module.random_model(Path(sys.argv[1]), print):
        print("written")
except KleinError as error:
    print(error.message)
    print(error.hint)
"""


@pytest.mark.process
def test_a_disk_that_fills_up_on_the_way_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    """safetensors has an error of its own for it, which is no OSError.

    The limit on the size of a file stands for the disk; the weights are what reaches it.
    """
    import resource

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    folder = tmp_path / "model"
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, folder],
        capture_output=True,
        text=True,
        preexec_fn=little_room,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _, said, hint = done.stdout.splitlines()
    assert said.startswith(f"cannot write random weights to {folder}: ")
    assert "File too large" in said
    assert "--keep" in hint
    assert not folder.exists()


def test_what_it_takes(small_snapshot: Path) -> None:
    weights = sum(path.stat().st_size for path in small_snapshot.rglob("*.safetensors"))
    assert snapshot_bytes("small") == pytest.approx(weights, rel=0.02)


@pytest.mark.parametrize(
    ("size", "transformer", "text_encoder"), [("4b", 7.75e9, 8.04e9), ("9b", 18.16e9, 16.38e9)]
)
def test_the_true_sizes_are_those_of_the_real_models(
    size: str, transformer: float, text_encoder: float
) -> None:
    assert snapshot_bytes(size) == pytest.approx(transformer + text_encoder + 0.168e9, rel=0.002)


def _fail(snapshot: Snapshot) -> None:
    assert snapshot.root.is_dir()
    raise ZeroDivisionError
