"""The result of a run -> tables of words, for a terminal or for a page in Markdown.

Works on the JSON object alone, so that a run on another machine can be shown here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]

_KLEIN, _LIMIT = "klein", "limit"
_KINDS = {
    "copy": "copying",
    "matmul": "matrix product",
    "fp8": "fp8 matrix product, rowwise scales",
    "attention": "attention",
}
_WORK = {
    "dit_linears": "DiT linears",
    "dit_attention": "DiT attention",
    "encode": "text encoder",
    "references": "references",
    "decode": "VAE",
}
_VERSIONS = ("klein", "torch", "cuda", "cudnn", "diffusers", "transformers")
_BRACKETS = "Medians, with the quartiles in brackets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A title, a head and rows of its length, the first cell of each its name; notes below."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Cell:
    """A number and how a person reads it."""

    number: float
    words: str


def heading(result: Result) -> str:
    """In one line what was measured, where, in which versions, and when."""
    machine, model = result["machine"], result["model"]
    name = f"{model['name']} at {model['revision']}" if model["revision"] else model["name"]
    choices = ", ".join(f"{choice} {value}" for choice, value in result["settings"].items())
    versions = ", ".join(f"{name} {machine[name]}" for name in _VERSIONS if name in machine)
    return f"{name} on {machine['device name']}; {choices}; {versions}; {result['date']}"


def tables(result: Result) -> list[Table]:
    """Every table of a result, in the order of its parts; a part that was not run has none."""
    found = [_ceilings(result)] if result["ceilings"] else []
    found += [_size(result, size) for size in result["sizes"] if size["warm"] or size["throughput"]]
    if result["cold"]:
        found.append(_cold(result))
    return found


def left_out(result: Result) -> list[str]:
    """What the run could not measure, and why, a line each."""
    return [f"Left out: {thing['what']} ({thing['why']})." for thing in result["left_out"]]


def markdown(result: Result) -> str:
    """The whole result as a piece of a page in Markdown."""
    parts = [heading(result) + "."]
    for table in tables(result):
        lines = [table.head, ("---",) * len(table.head), *table.rows]
        shown = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts += [f"**{table.title}**", shown, " ".join(table.notes)]
    return "\n\n".join([*parts, *left_out(result)]) + "\n"


def _ceilings(result: Result) -> Table:
    rows = (
        (
            _KINDS[ceiling["kind"]],
            ceiling["shape"],
            f"{_digits(ceiling['rate'] / 1e12)} {'TB' if ceiling['kind'] == 'copy' else 'TFLOP'}/s",
            _spread(ceiling["seconds"]).words,
        )
        for ceiling in result["ceilings"]
    )
    return Table(
        title="This machine at its best",
        head=("what", "of what size", "rate", "one call"),
        rows=tuple(rows),
        notes=(f"In {result['settings']['dtype']} unless it says fp8. {_BRACKETS}.",),
    )


def _size(result: Result, size: Result) -> Table:
    limit = size["limits"].get(result["settings"]["dtype"], {}) if size["warm"] else {}
    rows: dict[str, dict[str, _Cell | None]] = {}
    for name, key, cells in _measured(size):
        best: dict[str, _Cell | None]
        best = {_LIMIT: _seconds(limit[key]) if key in limit else None} if limit else {}
        rows[name] = {_KLEIN: cells[_KLEIN], **best, **cells}
    title = f"{size['width']}x{size['height']}, {size['steps']} steps{_given(size)}"
    return _compared(title, rows, _notes(size, limit))


def _compared(
    title: str, rows: Mapping[str, Mapping[str, _Cell | None]], notes: Iterable[str]
) -> Table:
    """klein's cell of each row beside all others of it, which come in the same order in each."""
    others = [name for name in next(iter(rows.values())) if name != _KLEIN]
    head = ["", _KLEIN, *(word for name in others for word in (name, f"klein / {name}"))]
    lines = []
    for name, cells in rows.items():
        ours = cells[_KLEIN]
        assert ours is not None
        against = (words for other in others for words in _against(ours, cells[other]))
        lines.append((name, ours.words, *against))
    return Table(title=title, head=tuple(head), rows=tuple(lines), notes=tuple(notes))


def _measured(size: Result) -> Iterator[tuple[str, str, dict[str, _Cell]]]:
    """Each row's name, its key in the result, and a cell for every side."""
    warm, throughput = size["warm"], size["throughput"]
    kinds: dict[str, tuple[str, Callable[[Any], _Cell]]] = {
        "picture": ("one image", _spread),
        "encode": (
            "text and images encoded" if size.get("references") else "text encoder",
            _spread,
        ),
        "step": ("one more step", _spread),
        "denoise": (f"denoising, {size['steps']} steps", _spread),
        "decode": ("VAE, to the host's memory", _spread),
        "png": ("PNG, in memory", _spread),
        "first": ("first image of this size", _seconds),
        "peak": ("memory, peak", _bytes),
        "held": ("memory, between images", _bytes),
        "reserved": ("memory, reserved", _bytes),
    }
    for key, (name, cell) in kinds.items() if warm else ():
        if all(side[key] is not None for side in warm.values()):
            yield name, key, {side: cell(found[key]) for side, found in warm.items()}
    if throughput:
        rates = {side: found["per_second"] for side, found in throughput.items()}
        cells = {side: _Cell(rate, _digits(rate)) for side, rate in rates.items()}
        yield "images a second, PNGs on disk", "rate", cells


def _notes(size: Result, limit: Result) -> Iterator[str]:
    if size["warm"]:
        yield f"{_BRACKETS}, of {size['warm'][_KLEIN]['picture']['runs']} rounds."
    if limit:
        work = size["work"]
        done = {words: work.get(part) for part, words in _WORK.items()}
        parts = ", ".join(f"{words} {_tera(count)}" for words, count in done.items() if count)
        yield f"An image is {_tera(sum(work.values()))} TFLOP: {parts}."
    if limit and "fp8" in size["limits"]:
        fastest = size["limits"]["fp8"]["picture"]
        ratio = size["warm"][_KLEIN]["picture"]["median"] / fastest
        yield f"With fp8 linears in the DiT the limit is {_time(fastest)}: klein / it {ratio:.2f}."
    if size["throughput"]:
        lengths = size["throughput"][_KLEIN]["pictures"]
        yield f"Images a second (more is better) over {lengths} prompts of all lengths."
    for peer, apart in size["pixels"].items():
        yield f"From one noise, the pixels of klein and {peer} are {apart:.2f} of 255 apart."


def _cold(result: Result) -> Table:
    cold = result["cold"]
    rows = {"page cache warm": {side: _spread(found["warm"]) for side, found in cold.items()}}
    if all(found["dropped"] is not None for found in cold.values()):
        dropped = {side: _seconds(found["dropped"]) for side, found in cold.items()}
        rows["page cache dropped, once"] = dropped
    first = result["sizes"][0]
    size = f"{first['width']}x{first['height']}{_given(first)}"
    title = f"A whole process, from its start to a PNG and its end, {size}"
    return _compared(title, rows, (_split(side, found["split"]) for side, found in cold.items()))


def _given(size: Result) -> str:
    """How many references a size's images have, where they have any."""
    count = size.get("references", 0)
    return "" if not count else f", {count} reference{'s' if count > 1 else ''}"


def _split(side: str, phases: Mapping[str, float]) -> str:
    parts = ", ".join(f"{phase} {_time(spent)}" for phase, spent in phases.items())
    return f"Of it, {side}: {parts}."


def _against(ours: _Cell, theirs: _Cell | None) -> list[str]:
    if theirs is None:
        return ["", ""]
    return [theirs.words, f"{ours.number / theirs.number:.2f}" if theirs.number else ""]


def _spread(found: Mapping[str, float]) -> _Cell:
    middle, low, high = found["median"], found["low"], found["high"]
    unit, scale = _unit(middle)
    words = f"{_digits(middle * scale)} [{_digits(low * scale)}, {_digits(high * scale)}] {unit}"
    return _Cell(middle, words)


def _seconds(value: float) -> _Cell:
    return _Cell(value, _time(value))


def _bytes(value: float) -> _Cell:
    return _Cell(value, f"{_digits(value / 1e9)} GB")


def _time(value: float) -> str:
    unit, scale = _unit(value)
    return f"{_digits(value * scale)} {unit}"


def _unit(value: float) -> tuple[str, float]:
    return ("s", 1.0) if value >= 1 else ("ms", 1e3)


def _tera(value: float) -> str:
    return _digits(value / 1e12)


def _digits(value: float) -> str:
    """About three digits that count, and none of a number above a thousand left out."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value < 1 else f"{value:.{2 if value < 10 else 1}f}"
