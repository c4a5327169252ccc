"""Ctrl-C that waits: for the end of an import, and no longer than the second one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from klein_cli.run.interrupts import (
    Terminated,
    defer_interrupts,
    end_as_by_ctrl_c,
    exit_code_of,
    was_interrupted,
)

LAUNCH = """
import signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy._core":
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from klein_cli.cli.app import main
sys.exit(main())
"""


def test_an_interrupt_comes_behind_the_block() -> None:
    done = []

    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append(1)

    with pytest.raises(KeyboardInterrupt), defer_interrupts():
        work()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_one_comes_at_once() -> None:
    done = []

    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append(1)
        signal.raise_signal(signal.SIGINT)
        done.append(2)

    with pytest.raises(KeyboardInterrupt), defer_interrupts():
        work()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_signals_of_an_end_wait_too_and_keep_their_exit_code(name: str, code: int) -> None:
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    done = []

    def work() -> None:
        signal.raise_signal(number)
        done.append(1)

    try:
        end_as_by_ctrl_c()
        with pytest.raises(Terminated) as caught, defer_interrupts():
            work()
    finally:
        signal.signal(number, before)
    assert done
    assert exit_code_of(caught.value) == code
    assert was_interrupted(code)


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        end_as_by_ctrl_c()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_where_interrupts_are_ignored_or_somebody_elses_nothing_changes() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with defer_interrupts():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    seen: list[object] = []

    def beside() -> None:
        with defer_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.process
@pytest.mark.parametrize("many", [[], ["-n", "3"]])
def test_an_interrupt_while_numpy_is_imported_ends_the_run(many: list[str], tmp_path: Path) -> None:
    """torch would swallow it and go on without numpy, and every image fail of that."""
    draw = ["generate", "a cat", "-m", "tiny", "--size", "128x128", "--steps", "1", *many]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, *draw, "-o", f"{tmp_path}/out/"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert not list(tmp_path.rglob("*.png"))
