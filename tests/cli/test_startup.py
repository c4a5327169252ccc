"""A quick start changes how long things take, and leaves no trace behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from klein_cli.cli.startup import quick_start


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


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_sleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if before:
        monkeypatch.setenv("OMP_WAIT_POLICY", before)
    with quick_start():
        assert os.environ["OMP_WAIT_POLICY"] == after


def test_the_end_of_python_skips_what_was_imported() -> None:
    """Frozen objects are not looked through: the count is printed by the last atexit handler."""
    script = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "from klein_cli.cli.startup import quick_start\n"
        "with quick_start(): kept = [[] for _ in range(100_000)]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) >= 100_000


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
