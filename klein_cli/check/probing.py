"""`check.probes` in a process of its own, and what became of it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from klein_cli.check.finding import BAD, Finding
from klein_cli.check.probes import PREFIX

PATIENCE = 120.0
"""Seconds without a word from the probes, after which they count as hanging."""


class Probes:
    """`check.probes` in a process of its own, started at once and listened to when needed."""

    def __init__(self, command: list[str] | None = None, patience: float = PATIENCE) -> None:
        self._command = command or [sys.executable, "-m", "klein_cli.check.probes"]
        self._patience = patience
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._doing = "torch"

    def __enter__(self) -> Probes:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        # With the process its end of the pipe is closed, unless a child of its own still has it.
        self._listener.join(timeout=1.0)

    def facts(self) -> dict[str, Any]:
        """What torch says of itself; {"error": ...} if it cannot."""
        for said in self._said():
            if said["kind"] == "facts":
                return said
        return {"error": self._end()}

    def findings(self, on_event: Callable[[str], None]) -> Iterator[Finding]:
        """What the probes find, and how they ended if that was not well."""
        for said in self._said():
            kind = said.pop("kind")
            if kind == "begin":
                on_event(f"trying {said['name']}")
            elif kind == "finding":
                yield Finding(**said)
        if ended := self._end():
            hint = "install torch and the package of that name again; report it, with --json"
            yield Finding(name=self._doing, state=BAD, said=ended, hint=hint)

    def _said(self) -> Iterator[dict[str, Any]]:
        """Lines until the end of the process, or until it has been silent for too long."""
        while True:
            try:
                line = self._lines.get(timeout=self._patience)
            except queue.Empty:
                return
            if line is None:
                return
            said: dict[str, Any] = json.loads(line)
            if said["kind"] == "begin":
                self._doing = said["name"]
            yield said

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.startswith(PREFIX):
                    self._lines.put(line.removeprefix(PREFIX))
        self._lines.put(None)

    def _end(self) -> str:
        """How the process ended, in words; "" if it ended well."""
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return f"no answer within {self._patience:g} s while trying {self._doing}"
        if code == 0:
            return ""
        if code < 0:
            return f"crashed with {_signal_name(-code)} while trying {self._doing}"
        return f"ended with {code} while trying {self._doing}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
