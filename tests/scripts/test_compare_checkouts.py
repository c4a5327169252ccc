"""The judge of a refactor: it sees what is not the same, and says no difference of what is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import compare_checkouts
import compared_commands
import numpy
import pytest
from compare_checkouts import Tally, compare_batch, first_difference
from compared_commands import Klein, Side, observe
from compared_pictures import library_work
from compared_scenarios import scenarios
from PIL import Image, PngImagePlugin
from probe_checkout import array_file, probed

ROOT = Path(__file__).parents[2]
BATCH = {"name": "a", "rows": [], "tiled": False, "no_pixels": False}


class Stub:
    """A dialect that draws what it is told."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def open(self, *_: Any) -> None:
        pass

    def draw(self, *_: Any, arrays: dict[str, Any], **__: Any) -> None:
        arrays["latents 1"] = numpy.asarray(self._values, numpy.float32)
        if self._values is None:
            raise ValueError("nothing was drawn")


def drawn(values: Any, folder: Path) -> tuple[Path, dict[str, Any]]:
    """What the probe leaves of one batch."""
    folder.mkdir()
    wanted = {"model": "m", "settings": {}, "tapped_layers": None, "batches": [BATCH]}
    return folder, {result["name"]: result for result in probed(Stub(values), wanted, folder)}


@pytest.mark.parametrize(
    ("old", "new", "hows"),
    [
        ([1.0, 2.0], [1.0, 2.0], []),
        ([1.0, 2.0], [1.0, 2.5], ["1 of 2 values, at most 0.5"]),
        ([0.0, 2.0], [-0.0, 2.0], ["0 of 2 values, at most 0"]),
        ([1.0, 2.0], [[1.0], [2.0]], ["float32[2] -> float32[2, 1]"]),
    ],
)
def test_arrays_are_compared_bit_by_bit(tmp_path: Path, old: Any, new: Any, hows: Any) -> None:
    """Fails if a difference is rounded away, or two zeros pass for one."""
    tally = Tally(0, [])
    compare_batch(BATCH, drawn(old, tmp_path / "old"), drawn(new, tmp_path / "new"), tally)
    assert [difference.how for difference in tally.differences] == hows
    assert tally.compared == 3
    assert (tmp_path / "old" / array_file("a")).is_file()


def test_what_fails_on_both_sides_is_no_agreement(tmp_path: Path) -> None:
    tally = Tally(0, [])
    compare_batch(BATCH, drawn(None, tmp_path / "old"), drawn(None, tmp_path / "new"), tally)
    assert [(d.what, d.how) for d in tally.differences] == [
        ("drawn by old", "ValueError('nothing was drawn')"),
        ("drawn by new", "ValueError('nothing was drawn')"),
    ]


def test_a_difference_is_found_where_it_is() -> None:
    old = [{"event": "a"}, {"event": "b", "facts": {"seed": 1}}]
    new = [{"event": "a"}, {"event": "b", "facts": {"seed": 2}}]
    assert first_difference(old, new) == "[1].facts.seed 1 -> 2"
    assert "order" in first_difference({"order": 1, "b": 2}, {"b": 2, "order": 1})


def picture(**record: Any) -> Any:
    """A step that leaves a PNG with that record."""

    def leave(folder: Path) -> None:
        texts = PngImagePlugin.PngInfo()
        texts.add_text("klein", json.dumps(record, separators=(",", ":")))
        Image.new("RGB", (16, 16)).save(folder / "a.png", pnginfo=texts)

    return leave


def seen(step: Any, folder: Path) -> dict[str, Any]:
    return observe("command x", (step,), Side(checkout=ROOT, folder=folder, device="cpu"))


def test_a_version_is_no_difference_and_a_key_is(tmp_path: Path) -> None:
    first = seen(picture(klein="1.0", seed=1), tmp_path / "a")
    assert seen(picture(klein="1.10", seed=1), tmp_path / "b") == first
    other = seen(picture(klein="1.0", Seed=1), tmp_path / "c")
    assert {what for what in first if first[what] != other[what]} == {
        "a.png, record",
        "a.png, form of the record",
    }


def test_exit_codes_and_events_are_seen_and_sentences_are_not(tmp_path: Path) -> None:
    refused = Klein(("generate", "a cat", "-m", "tiny", "--size", "64x64", "-s", "1", "--json"))
    [(code, found), (events, lines), _] = seen(refused, tmp_path / "a").items()
    assert (code[-9:], found) == ("exit code", 2)
    assert (events[-6:], lines) == ("events", [{"event": "error", "message": "", "hint": ""}])


def test_nothing_compared_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pattern that fits nothing must not pass for a refactor that broke nothing."""
    monkeypatch.setattr(sys, "argv", ["x", ".", ".", "--only", "no such name"])
    monkeypatch.setattr(compare_checkouts, "_models", lambda *_: {"distilled": "d", "base": "b"})
    assert compare_checkouts.main() == 1
    assert capsys.readouterr().out.startswith("0 comparisons, no difference")


def test_names_are_told_apart_and_everything_asked_for_is_there() -> None:
    models = {"distilled": "d", "base": "b", "full": "f", "full base": "g"}
    for device, some in (("cpu", ("triton", "fp8", "eager")), ("cuda", ("fp8", "full base"))):
        work = library_work(device, models, True)
        names = [b["name"] for group in work.values() for p in group for b in p["batches"]]
        assert len(names) == len(set(names)) > 50
        assert all(any(word in name for name in names) for word in some)
    assert len(scenarios(models)) > 10
    assert all(ignored.reason for ignored in compared_commands.IGNORED)
