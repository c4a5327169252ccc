"""Fill tables of docs/performance.md and the README from results of `klein bench`, none by hand.

    klein bench -m FOLDER --peer --rounds 6 --json > docs/benches/h200-bf16.json
    python scripts/fill_performance.py

Everything between `<!-- table: NAME -->` and `<!-- end -->` is replaced: NAME.json's tables, for
`targets` what of them is met, for `summary` what a reader of the README may want to know. A result
that is not there is said to be not measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klein_cli.bench.tables import markdown

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "benches"

_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_OURS, _PEER = "klein", "diffusers"
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A number that the result of this name should not exceed, or with `at_least` should reach."""

    what: str
    result: str
    number: Callable[[Result], float]
    limit: float
    unit: str = ""
    at_least: bool = False

    def row(self, results: dict[str, Result]) -> str:
        """The target's line of the table."""
        sign = ">=" if self.at_least else "<="
        wanted = f"{sign} {self.limit:g}{self.unit}"
        try:
            number = self.number(results[self.result])
        except (KeyError, StopIteration):
            return f"| {self.what} | {wanted} | not measured | |"
        short = (self.limit - number if self.at_least else number - self.limit) / self.limit
        verdict = "met" if short <= 0 else f"missed by {short:.0%}"
        return f"| {self.what} | {wanted} | {number:.3g}{self.unit} | {verdict} |"


def _size(result: Result, side: int) -> Result:
    found: Result = next(size for size in result["sizes"] if size["width"] == side)
    return found


Reader = Callable[[Result, str], float]
"""A number of one side of a result."""


def _picture(size: int) -> Reader:
    return lambda result, side: float(_size(result, size)["warm"][side]["picture"]["median"])


def _rate(size: int) -> Reader:
    return lambda result, side: float(_size(result, size)["throughput"][side]["per_second"])


def _cold(result: Result, side: str) -> float:
    return float(result["cold"][side]["warm"]["median"])


def _peak(result: Result, side: str) -> float:
    return float(_size(result, 1024)["warm"][side]["peak"] / 1e9)


def _ratio(number: Reader) -> Callable[[Result], float]:
    return lambda result: number(result, _OURS) / number(result, _PEER)


def _ours(number: Reader) -> Callable[[Result], float]:
    return lambda result: number(result, _OURS)


def _to_limit(result: Result) -> float:
    limit = _size(result, 1024)["limits"][result["settings"]["dtype"]]["picture"]
    return _picture(1024)(result, _OURS) / float(limit)


BF16, FP8 = "h200-bf16", "h200-fp8"
TARGETS = (
    Target(
        "one warm 1024x1024 image, bfloat16, over diffusers", BF16, _ratio(_picture(1024)), 0.58
    ),
    Target("the same over the machine's limit (a stretch)", BF16, _to_limit, 1.33),
    Target("one warm 1024x1024 image, fp8, over diffusers", FP8, _ratio(_picture(1024)), 0.40),
    Target("one warm 512x512 image, bfloat16, over diffusers", BF16, _ratio(_picture(512)), 0.50),
    Target(
        "images a second, 1024x1024, PNGs on disk", BF16, _ours(_rate(1024)), 3.6, at_least=True
    ),
    Target("images a second, 512x512, PNGs on disk", BF16, _ours(_rate(512)), 11.5, at_least=True),
    Target("a cold process, page cache warm, over diffusers' own", BF16, _ratio(_cold), 0.45),
    Target("memory at 1024x1024, bfloat16", BF16, _ours(_peak), 18, " GB"),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One line of the README's table: a number of klein's and the same of diffusers'."""

    what: str
    result: str
    number: Reader
    unit: str

    def row(self, results: dict[str, Result]) -> str:
        """The line: both numbers, and the first over the second."""
        try:
            ours, theirs = (self.number(results[self.result], side) for side in (_OURS, _PEER))
        except (KeyError, StopIteration):
            return f"| {self.what} | not measured | | |"
        shown = " | ".join(f"{number:#.3g}".rstrip(".") + self.unit for number in (ours, theirs))
        return f"| {self.what} | {shown} | {ours / theirs:.2f} |"


SUMMARY = (
    Compared("one image, 1024x1024, the model loaded", BF16, _picture(1024), " s"),
    Compared("the same with `--quantize fp8`", FP8, _picture(1024), " s"),
    Compared("one image, 512x512", BF16, _picture(512), " s"),
    Compared("images a second, 1024x1024, PNGs on disk (more is better)", BF16, _rate(1024), ""),
    Compared("images a second, 512x512 (more is better)", BF16, _rate(512), ""),
    Compared("the whole command, from Enter to the PNG", BF16, _cold, " s"),
    Compared("GPU memory at most, 1024x1024", BF16, _peak, " GB"),
)


def filled(page: str, results: dict[str, Result]) -> str:
    """The page with every block made anew from the results by name."""

    def block(found: re.Match[str]) -> str:
        head, name, end = found.groups()
        return f"{head}\n{_content(name, results)}\n{end}"

    return _BLOCK.sub(block, page)


def _content(name: str, results: dict[str, Result]) -> str:
    if name == "targets":
        rows = [target.row(results) for target in TARGETS]
        return _table("| what | target | measured | |", rows)
    if name == "summary":
        return _table(
            "| | klein | diffusers | klein / diffusers |", [line.row(results) for line in SUMMARY]
        )
    return markdown(results[name]) if name in results else "Not measured yet.\n"


def _table(head: str, rows: list[str]) -> str:
    return "\n".join([head, "| --- | --- | --- | --- |", *rows]) + "\n"


def read_results(folder: Path) -> dict[str, Result]:
    """The last line of each .json file in a folder, by the file's name."""
    paths = sorted(folder.glob("*.json"))
    return {path.stem: json.loads(path.read_text().splitlines()[-1]) for path in paths}


def main() -> None:
    """Rewrite the pages in place."""
    for page in (PAGE, README):
        text = filled(page.read_text(encoding="utf-8"), read_results(RESULTS))
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
