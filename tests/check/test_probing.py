"""Probes run apart: whatever becomes of their process is told, with what it was doing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import broken_probes
import pytest

from klein_cli.check.finding import BAD, OK, Finding
from klein_cli.check.probing import Probes, Run

pytestmark = pytest.mark.process


def run(probes: Run, patience: float = 20.0) -> tuple[dict[str, object], list[Finding], list[str]]:
    """The facts and the findings of some probes, and what was said meanwhile."""
    doing: list[str] = []
    with Probes(probes, patience) as apart:
        facts = apart.facts()
        findings = [] if "error" in facts else list(apart.findings(doing.append))
    return facts, findings, doing


def test_findings_come_in_order_whatever_libraries_print(capfd: pytest.CaptureFixture[str]) -> None:
    facts, findings, doing = run(broken_probes.noisy)
    assert facts["version"] == "2"
    assert findings == [Finding("sdpa", OK, "right")]
    assert doing == ["trying sdpa"]
    assert capfd.readouterr() == ("", "")


def test_a_crash_is_told_with_what_was_tried() -> None:
    """A kernel for another processor, a library of another version: no exception to catch."""
    _, findings, _ = run(broken_probes.crashes)
    assert findings[0].state == OK
    assert (findings[1].name, findings[1].state) == ("flash-attn", BAD)
    assert "SIGILL" in findings[1].said


def test_a_crash_while_torch_is_imported_leaves_no_findings() -> None:
    facts, _, _ = run(broken_probes.crashes_on_import)
    assert facts == {"error": "crashed with SIGSEGV while trying torch"}


def test_an_exit_in_the_middle_is_told() -> None:
    _, findings, _ = run(broken_probes.exits)
    assert findings[-1].said == "ended with 3 while trying mask"


def test_a_process_that_hangs_is_given_up_and_ended() -> None:
    began = time.monotonic()
    with Probes(broken_probes.hangs, 5.0) as probes:
        probes.facts()
        pid = probes._process.pid
        assert pid is not None
        probes._patience = 0.5
        (finding,) = probes.findings(lambda _: None)
    assert "no answer within 0.5 s while trying fp8" in finding.said
    assert time.monotonic() - began < 15
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def broken_torch(folder: Path, body: str) -> None:
    """Put a torch into a folder that does `body` when it is imported."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(body)


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
    broken_torch(tmp_path, body)
    monkeypatch.syspath_prepend(tmp_path)
    with Probes() as probes:
        assert words in str(probes.facts()["error"])
