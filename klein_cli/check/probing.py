"""`check.probes` in a process of its own, and what became of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from klein_cli.check import probes
from klein_cli.check.finding import BAD, Finding

PATIENCE = 120.0
"""Seconds without a word from the probes, after which they count as hanging."""

_SIGNALS = {number.value: number.name for number in signal.Signals}

Run = Callable[[probes.Tell], None]


class Probes:
    """Probes in a process of their own, started at once and listened to when needed."""

    def __init__(self, run: Run = probes.run, patience: float = PATIENCE) -> None:
        self._run = run
        self._patience = patience
        self._doing = "torch"

    def __enter__(self) -> Probes:
        # A new interpreter: a fork would have what was imported here.
        context = get_context("spawn")
        self._messages, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_apart, args=(theirs, self._run), daemon=True)
        self._process.start()
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._messages.close()

    def facts(self) -> dict[str, Any]:
        """What torch says of itself; {"error": ...} if it cannot."""
        for kind, said in self._heard():
            if kind == "facts":
                facts: dict[str, Any] = said
                return facts
        return {"error": self._end()}

    def findings(self, on_event: Callable[[str], None]) -> Iterator[Finding]:
        """What the probes find, and how they ended if that was not well."""
        for kind, said in self._heard():
            if kind == "begin":
                on_event(f"trying {said}")
            elif kind == "finding":
                yield said
        if ended := self._end():
            hint = "install torch and the package of that name again; report it, with --json"
            yield Finding(self._doing, BAD, ended, hint)

    def _heard(self) -> Iterator[tuple[str, Any]]:
        """Messages until the process ends, or until it has been silent for too long."""
        while self._messages.poll(self._patience):
            try:
                kind, said = self._messages.recv()
            except EOFError:
                return
            if kind == "begin":
                self._doing = said
            yield kind, said

    def _end(self) -> str:
        """How the process ended, in words; "" if it ended well."""
        ended = self._messages.poll(0)  # there is something to read, be it that there is no more
        self._process.join(timeout=self._patience if ended else 0.0)
        code = self._process.exitcode
        if code is None:
            return f"no answer within {self._patience:g} s while trying {self._doing}"
        if code < 0:
            name = _SIGNALS.get(-code, f"signal {-code}")
            return f"crashed with {name} while trying {self._doing}"
        return f"ended with {code} while trying {self._doing}" if code else ""


def _apart(messages: Connection, run: Run) -> None:
    """Run the probes; what libraries print goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    run(lambda kind, said: messages.send((kind, said)))
