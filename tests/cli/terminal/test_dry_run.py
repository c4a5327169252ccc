"""--dry-run: the whole plan, and as much as is known of its length."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Klein = Callable[..., tuple[str, list[str]]]


@pytest.fixture(autouse=True)
def _prompts(empty_folder: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "a cat"}] * 3 + [{"prompt": "a dog", "steps": 2}]
    Path("p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture
def klein(klein: Callable[..., tuple[int, str, str]], random_snapshot: str) -> Klein:
    """Run `klein generate` here on the random model -> (stdout, lines of stderr)."""

    def run(*arguments: str) -> tuple[str, list[str]]:
        options = ["-m", random_snapshot, "--size", "64x64", "--steps", "1", "--device", "cpu"]
        source = ["--prompts-file", "p.jsonl", "-o", "d/", "-s", "5"]
        code, out, err = klein("generate", *options, *source, *arguments)
        assert code == 0
        return out, err.splitlines()

    return run


def test_it_tells_pictures_and_groups(klein: Klein) -> None:
    out, err = klein("--dry-run")
    last = out.splitlines()[3]
    assert re.fullmatch(r'd/0004-a-dog-8\.png  seed 8  64x64  2 steps  \d tokens  "a dog"', last)
    assert err == ["4 images to make: 3 of 64x64, 1 step; 1 of 64x64, 2 steps"]


def test_it_tells_how_long_such_pictures_took_here(klein: Klein) -> None:
    klein("-q")
    for path in list(Path("d").glob("*.png"))[1:]:
        path.unlink()
    _, err = klein("--dry-run", "--resume")
    assert err[0].startswith("3 images to make, 1 there already: ")
    assert re.fullmatch(r"about 0:00:0\d, as such images took in this folder before", err[1])
    with open("p.jsonl", "a") as file:
        file.write('\n{"prompt": "a hen", "width": 80}')
    _, err = klein("--dry-run", "--resume")
    assert err[1].endswith(", and 1 of sizes that were not made here yet")


def test_workers_share_the_time(klein: Klein) -> None:
    klein("-q")
    manifest = Path("d/manifest.jsonl")
    manifest.write_text(re.sub(r'"seconds":[\d.]+', '"seconds":60', manifest.read_text()))
    assert "about 0:04:00, " in klein("--dry-run")[1][-1]
    assert "about 0:02:00, " in klein("--dry-run", "--workers", "2")[1][-1]


def test_a_cut_prompt_says_where(klein: Klein) -> None:
    Path("p.jsonl").write_text(json.dumps({"prompt": "cat and dog " * 400 + "the end"}))
    out, _ = klein("--dry-run", "-q")
    (cut,) = re.findall(r"tokens, cut from (\".*?\")  ", out)
    assert json.loads(cut).endswith("the end")
    assert len(json.loads(cut)) < 4000
    shown = json.loads(out.rpartition("  ")[2])
    assert shown == ("cat and dog " * 400)[:400] + "…", "the plan is for reading"


def test_json_tells_the_plan_in_numbers(klein: Klein) -> None:
    out, _ = klein("--dry-run", "--json")
    *_, plan = [json.loads(line) for line in out.splitlines()]
    assert plan == {
        "event": "plan",
        "pictures": 4,
        "there": 0,
        "groups": [
            {"width": 64, "height": 64, "steps": 1, "guidance": 1.0, "pictures": 3},
            {"width": 64, "height": 64, "steps": 2, "guidance": 1.0, "pictures": 1},
        ],
        "seconds": None,
    }
    klein("-q")
    plan = json.loads(klein("--dry-run", "--json")[0].splitlines()[-1])
    assert plan["seconds"] > 0
