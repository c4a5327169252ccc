"""The loop over a folder of cases: what it calls ill, and what it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import try_cases

GOOD = '"$KLEIN" info nowhere.png; echo "rc=$?"; cat "$CASE/expected"; ls -A'
BAD = "echo 'Traceback (most recent call last):'; echo rc=1"


def case(folder: Path, name: str, script: str) -> None:
    (folder / name).mkdir()
    (folder / name / "cmd").write_text(f"#!/bin/bash\n{script}\n")
    (folder / name / "expected").write_text("as it should be\n")


@pytest.mark.process
def test_a_case_is_run_in_an_empty_folder_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case(tmp_path, "01", GOOD)
    monkeypatch.setattr(sys, "argv", ["try_cases.py", str(tmp_path)])
    assert try_cases.main() == 0
    said = capsys.readouterr().out
    assert "error: cannot read nowhere.png: No such file or directory" in said
    assert "rc=2\nas it should be\n-- expected\nas it should be" in said
    case(tmp_path, "02", BAD)
    assert try_cases.main() == 1
    said = capsys.readouterr().out
    assert "== 02: Python's own words" in said
    assert said.endswith("1 of 2 are answered ill\n")


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("OSError: no", "Python's own words"),
        ("error: cannot read: [Errno 2]", "Python's own words"),
        ("rc=70", "exit codes [70]"),
        ("no end in 300 s", "it does not end"),
    ],
)
def test_what_is_called_ill(said: str, fault: str) -> None:
    assert list(try_cases.judged(said)) == [fault]


def test_kleins_own_words_are_well() -> None:
    said = "error: a.png is gone: moved\nhint: move it back\nrc=1\nrc=143\nwarning: x\n"
    assert list(try_cases.judged(said)) == []
