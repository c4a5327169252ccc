"""Probes run apart: whatever becomes of their process is told, with what it was doing."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from klein_cli.check.finding import BAD, OK, Finding
from klein_cli.check.probes import PREFIX
from klein_cli.check.probing import Probes

pytestmark = pytest.mark.process


def line(kind: str, **said: object) -> str:
    return f"print({PREFIX + json.dumps({'kind': kind, **said})!r}, flush=True)\n"


FACTS = line("begin", name="torch") + line("facts", version="2")
GOOD = line("begin", name="sdpa") + line("finding", name="sdpa", state="ok", said="right")


def run(script: str, patience: float = 20.0) -> tuple[dict[str, object], list[Finding], list[str]]:
    """The facts and the findings of probes that are `script`, and what was said meanwhile."""
    doing: list[str] = []
    with Probes([sys.executable, "-c", script], patience) as probes:
        facts = probes.facts()
        findings = [] if "error" in facts else list(probes.findings(doing.append))
    return facts, findings, doing


def test_findings_come_in_order_among_whatever_libraries_print() -> None:
    noise = "import sys; print('loading...'); print('\\x1b[2J{}', end=''); sys.stdout.flush()\n"
    facts, findings, doing = run(noise + "print()\n" + FACTS + noise + "print()\n" + GOOD)
    assert facts["version"] == "2"
    assert findings == [Finding(name="sdpa", state=OK, said="right")]
    assert doing == ["trying sdpa"]


def test_a_crash_is_told_with_what_was_tried() -> None:
    """A kernel for another processor, a library of another version: no exception to catch."""
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    _, findings, _ = run(FACTS + GOOD + line("begin", name="flash-attn") + crash)
    assert findings[0].state == OK
    assert (findings[1].name, findings[1].state) == ("flash-attn", BAD)
    assert "SIGILL" in findings[1].said


def test_a_crash_while_torch_is_imported_leaves_no_findings() -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    facts, _, _ = run(line("begin", name="torch") + crash)
    assert facts == {"error": "crashed with SIGSEGV while trying torch"}


def test_an_exit_in_the_middle_is_told() -> None:
    _, findings, _ = run(FACTS + line("begin", name="mask") + "import sys; sys.exit(3)")
    assert findings[0].said == "ended with 3 while trying mask"


def test_a_process_that_hangs_is_given_up_and_ended() -> None:
    began = time.monotonic()
    script = FACTS + line("begin", name="fp8") + "import time; time.sleep(60)"
    with Probes([sys.executable, "-c", script], 0.5) as probes:
        probes.facts()
        pid = probes._process.pid
        (finding,) = probes.findings(lambda _: None)
    assert "no answer within 0.5 s while trying fp8" in finding.said
    assert time.monotonic() - began < 10
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def broken_torch(folder: Path, body: str) -> dict[str, str]:
    """An environment whose torch does `body` when it is imported."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(body)
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "import ctypes; ctypes.CDLL('libcudart-of-another-version.so')",
            "libcudart-of-another-version.so",
        ),
        ("raise SystemExit(1)", "SystemExit"),
        ("import os; os.abort()", "SIGABRT"),
    ],
)
def test_a_torch_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    monkeypatch.setattr(os, "environ", broken_torch(tmp_path, body))
    with Probes() as probes:
        assert words in str(probes.facts()["error"])
