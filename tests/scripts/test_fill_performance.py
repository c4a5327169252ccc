"""The page's tables are what the results say, and nobody typed them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fill_performance import PAGE, README, RESULTS, SUMMARY, TARGETS, filled, read_results

RATES = {"klein": {"per_second": 3.0}}


def result(picture: float, peer: float) -> dict[str, Any]:
    """What of a result the targets look at. The numbers are made up."""
    sides = {"klein": picture, "diffusers": peer}
    warm = {side: {"picture": {"median": time}, "peak": 17e9} for side, time in sides.items()}
    sizes = [
        {
            "width": width,
            "warm": warm,
            "limits": {"bfloat16": {"picture": 0.2}},
            "throughput": RATES,
        }
        for width in (1024, 512)
    ]
    return {
        "settings": {"dtype": "bfloat16"},
        "sizes": sizes,
        "cold": {side: {"warm": {"median": time}} for side, time in sides.items()},
    }


@pytest.mark.parametrize("page", [PAGE, README], ids=lambda page: page.name)
def test_a_page_is_what_the_results_make_of_it(page: Path) -> None:
    """Fails when a result or the tables have changed and the page has not, or it was edited."""
    text = page.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert filled(text, read_results(RESULTS)) == text


def test_every_result_has_its_place_on_the_page() -> None:
    named = re.findall(r"<!-- table: ([\w-]+) -->", PAGE.read_text(encoding="utf-8"))
    assert {"targets", *read_results(RESULTS)} <= set(named)
    assert {target.result for target in TARGETS} <= set(named)


def test_targets_are_met_or_missed_by_so_much() -> None:
    rows = {target.what: target.row({"h200-bf16": result(0.264, 0.48)}) for target in TARGETS}
    verdicts = [row.split(" | ")[-2:] for row in rows.values()]
    assert verdicts == [
        ["0.55", "met |"],
        ["1.32", "met |"],
        ["not measured", "|"],
        ["0.55", "missed by 10% |"],
        ["3", "missed by 17% |"],
        ["3", "missed by 74% |"],
        ["0.55", "missed by 22% |"],
        ["17 GB", "met |"],
    ]


def test_a_part_that_was_not_run_is_not_measured() -> None:
    partial = result(0.264, 0.48)
    partial["cold"] = {}
    partial["sizes"] = partial["sizes"][:1]
    rows = [target.row({"h200-bf16": partial}) for target in TARGETS]
    assert [row.endswith("not measured | |") for row in rows] == [
        *(False, False, True, True, False, True, True, False)
    ]


def test_the_summary_has_both_numbers_and_their_ratio() -> None:
    results = {"h200-bf16": result(0.2583, 0.487)}
    rows = [line.row(results) for line in SUMMARY]
    assert rows[0].endswith(" | 0.258 s | 0.487 s | 0.53 |")
    assert rows[1].endswith(" | not measured | | |")
    assert rows[-1].endswith(" | 17.0 GB | 17.0 GB | 1.00 |")
    assert rows[0] in filled("<!-- table: summary -->\n<!-- end -->", results)


@pytest.mark.parametrize("before", ["", "anything\n"])
def test_blocks_are_replaced_and_all_else_stays(before: str, tmp_path: Path) -> None:
    page = f"words\n<!-- table: h200-fp8 -->\n{before}<!-- end -->\nmore\n"
    wanted = "words\n<!-- table: h200-fp8 -->\n\nNot measured yet.\n\n<!-- end -->\nmore\n"
    assert filled(page, {}) == wanted
    assert filled(wanted, {}) == wanted


def test_a_result_is_the_last_line_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "a-run.json").write_text("tables\n" + json.dumps({"format": 1}) + "\n")
    assert read_results(tmp_path) == {"a-run": {"format": 1}}
