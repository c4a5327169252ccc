"""A quick start changes how long things take, and leaves no trace behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from klein_cli.checkpoints.source import PARTS
from klein_cli.device.startup import quick_start, read_ahead, wake_gpu


def test_the_collector_rests_and_wakes_again() -> None:
    assert gc.isenabled()
    with quick_start():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_wakes_after_an_error_and_sleeps_on_if_it_slept() -> None:
    with pytest.raises(ZeroDivisionError), quick_start():
        raise ZeroDivisionError
    assert gc.isenabled()
    gc.disable()
    try:
        with quick_start():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def said(script: str) -> str:
    """What a process says that runs `script`, which ends well and without a word on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.process
def test_triton_leaves_without_a_word() -> None:
    """Frozen, its objects are not freed, and its bindings say so in fifty lines."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    script = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "from klein_cli.device.startup import freeze_imports, quick_start\n"
        "with quick_start():\n"
        "    kept = [[] for _ in range(100_000)]\n"
        "    freeze_imports()\n"
        "    import klein_cli.optimize.kernels.norms\n"
    )
    assert int(said(script)) >= 100_000


@pytest.mark.process
def test_imports_are_frozen_once() -> None:
    """A second time there would be a model among them, which could never be freed in a cycle."""
    script = (
        "import gc\n"
        "from klein_cli.device.startup import freeze_imports\n"
        "freeze_imports()\n"
        "count = gc.get_freeze_count()\n"
        "kept = [[] for _ in range(1000)]\n"
        "freeze_imports()\n"
        "print(count > 1000, gc.get_freeze_count() - count)\n"
    )
    assert said(script) == "True 0\n"


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_sleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if before:
        monkeypatch.setenv("OMP_WAIT_POLICY", before)
    with quick_start():
        assert os.environ["OMP_WAIT_POLICY"] == after


@pytest.mark.process
def test_the_end_of_python_skips_what_was_imported() -> None:
    """Frozen objects are not looked through: the count is printed by the last atexit handler."""
    script = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "from klein_cli.device.startup import quick_start\n"
        "with quick_start(): kept = [[] for _ in range(100_000)]\n"
    )
    assert int(said(script)) >= 100_000


@pytest.mark.process
def test_a_picture_does_without_torchs_compiler_and_ray(random_snapshot: str) -> None:
    """One random initial value on the meta device would import it: a second, and more to free."""
    script = (
        "import sys\n"
        "from klein_cli.cli.app import main\n"
        f"options = ['-m', {random_snapshot!r}, '--size', '32x32', '-o', '-', '--device', 'cpu']\n"
        "code = main(['generate', 'a cat', '-q', *options])\n"
        "sys.exit(code or bool({'torch._dynamo', 'ray'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith(b"\x89PNG")


def test_a_machine_without_a_driver_is_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said: torch will say it better."""
    monkeypatch.setattr("klein_cli.device.startup._DRIVER", "libno-such-driver.so")
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    before = set(threading.enumerate())
    wake_gpu("cuda:1")
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert not failed


def test_nothing_is_done_for_a_gpu_that_is_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(threading, "Thread", fail)
    wake_gpu("cpu")
    read_ahead([tmp_path / "weights"], "cpu")


def test_weights_are_read_ahead_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of use; what lies in memory is left alone."""
    for part in PARTS:
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").write_bytes(b"x" * 10_000)
    read: list[tuple[str, int]] = []
    preadv = os.preadv

    def watched(file: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        where = Path(os.readlink(f"/proc/self/fd/{file}"))
        if flags:  # asks whether it is in memory: the transformer's first piece is
            if (where.parent.name, offset) == ("transformer", 0):
                return 1
            raise BlockingIOError
        read.append((where.parent.name, offset))
        return preadv(file, buffers, offset)

    monkeypatch.setattr("klein_cli.device.startup._CHUNK", 4096)
    monkeypatch.setattr(os, "preadv", watched)
    before = set(threading.enumerate())
    files = [tmp_path / part / "model.safetensors" for part in PARTS]
    read_ahead(files, "auto")
    for thread in set(threading.enumerate()) - before:
        thread.join()
    offsets = (0, 4096, 8192)
    assert read == [
        *(("text_encoder", offset) for offset in offsets),
        *(("transformer", offset) for offset in offsets[1:]),
        *(("vae", offset) for offset in offsets),
    ]


def test_a_file_that_is_not_there_is_no_ones_business_yet(tmp_path: Path) -> None:
    read_ahead([tmp_path / "nothing"], "auto")


@pytest.mark.process
@pytest.mark.gpu
def test_a_gpu_that_was_woken_computes() -> None:
    script = (
        "import threading\n"
        "from klein_cli.device.startup import wake_gpu\n"
        "wake_gpu('cuda')\n"
        "import torch\n"
        "for t in threading.enumerate():\n"
        "    if t.name == 'klein-wake': t.join()\n"
        "assert torch.ones(3, device='cuda').sum().item() == 3\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
