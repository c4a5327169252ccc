"""What is written about an image that is drawn from words is what commit 41edafe wrote, for good.

scripts/make_kept_records.py made tests/fixtures/records.json. Folders are resumed by these hashes,
and images are made again by these records.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from make_kept_records import BASE, made

from klein_cli.cli.app import main

KEPT = Path(__file__).parents[1] / "fixtures" / "records.json"
RUNS: list[dict[str, Any]] = json.loads(KEPT.read_text(encoding="utf-8"))


def less_what_may_differ(picture: dict[str, Any]) -> str:
    """The facts as one text, keys in their order, without the versions, the machine's values and
    the fingerprint of the weights: the random ones of these tests, and those of a tiny that was
    trained again, are others.
    """
    record = picture["record"]
    version = record["klein"]
    record |= {"klein": "", "provenance": dict.fromkeys(record["provenance"], "")}
    assert int(record["model"]["weights"], 16) >= 0
    record["model"]["weights"] = ""
    text = picture["parameters"].removesuffix(f"Version: klein {version}")
    return json.dumps(picture | {"parameters": text}, indent=1, ensure_ascii=False)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["model"])
def test_hashes_and_records_are_those_of_41edafe(
    run: dict[str, Any],
    small_base_snapshot: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fails if a field is added to the record of words, renamed or moved, or is hashed."""
    monkeypatch.chdir(tmp_path)
    model = run["model"]
    if model == BASE:
        model = f"./{BASE}"
        shutil.copytree(small_base_snapshot, model)
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run["rows"]))
    files = ["--prompts-file", "prompts.jsonl", "-o", "d/"]
    assert main(["generate", "-m", model, *files, "--device", "cpu", "-q", *run["options"]]) == 0
    found = made(tmp_path / "d")
    assert list(found) == list(run["made"])
    for file, picture in run["made"].items():
        assert less_what_may_differ(found[file]) == less_what_may_differ(picture), file
