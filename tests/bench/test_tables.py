"""What a result says as tables: ratios the right way up, and no row without its numbers."""

from __future__ import annotations

from typing import Any

import pytest

from klein_cli.bench.tables import Table, heading, left_out, markdown, tables

WORK = {"encode": 3e12, "dit_linears": 1e14, "dit_attention": 2e13, "decode": 1e13}


def spread(median: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"median": median, "low": low or median, "high": high or median, "runs": 8}


def warm(picture: float, **changes: Any) -> dict[str, Any]:
    return {
        "first": 2.5,
        "picture": spread(picture, picture * 0.99, picture * 1.02),
        "encode": spread(0.006),
        "step": spread(picture / 6),
        "denoise": spread(picture / 1.5),
        "decode": spread(0.03),
        "png": spread(0.15),
        "peak": 16_900_000_000,
        "held": 14_100_000_000,
        "reserved": 17_800_000_000,
        **changes,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    """A run with everything in it. The numbers are made up."""
    limit = {"encode": 0.004, "step": 0.045, "denoise": 0.178, "decode": 0.013, "picture": 0.195}
    return {
        "format": 1,
        "date": "2026-01-31",
        "model": {"name": "some model", "revision": None},
        "settings": {"device": "cuda", "dtype": "bfloat16"},
        "machine": {"klein": "0.1.0", "torch": "2.11.0", "device name": "Some GPU"},
        "ceilings": [
            {"kind": "copy", "shape": "2048 MiB", "rate": 4.28e12, "seconds": spread(0.001)},
            {"kind": "matmul", "shape": "8x8x8", "rate": 7.83e14, "seconds": spread(0.0014)},
        ],
        "sizes": [
            {
                "width": 1024,
                "height": 768,
                "steps": 4,
                "work": {
                    "encode": 3e12,
                    "dit_linears": 1e14,
                    "dit_attention": 2e13,
                    "decode": 1e13,
                },
                "limits": {"bfloat16": limit, "fp8": {**limit, "picture": 0.13}},
                "warm": {"klein": warm(0.26), "diffusers": warm(0.48), "tuned": warm(0.325)},
                "pixels": {"diffusers": 0.912, "tuned": 1.0},
                "throughput": {
                    "klein": {"per_second": 3.9, "interval": spread(0.25), "pictures": 24},
                    "diffusers": {"per_second": 1.56, "interval": spread(0.6), "pictures": 24},
                    "tuned": {"per_second": 2.0, "interval": spread(0.5), "pictures": 24},
                },
            }
        ],
        "cold": {
            "klein": {"warm": spread(5.5), "dropped": 14.0, "split": {"load": 3.0, "end": 0.5}},
            "diffusers": {"warm": spread(16.5), "dropped": 31.6, "split": {"load": 2.5}},
        },
        "left_out": [{"what": "a thing", "why": "it is not here"}],
    }


def row(table: Table, name: str) -> dict[str, str]:
    (cells,) = (cells for cells in table.rows if cells[0] == name)
    return dict(zip(table.head, cells, strict=True))


def test_a_picture_beside_its_limit_and_its_peers(result: dict[str, Any]) -> None:
    _, size, _ = tables(result)
    assert size.title == "1024x768, 4 steps"
    assert row(size, "one image") == {
        "": "one image",
        "klein": "260 [257, 265] ms",
        "limit": "195 ms",
        "klein / limit": "1.33",
        "diffusers": "480 [475, 490] ms",
        "klein / diffusers": "0.54",
        "tuned": "325 [322, 332] ms",
        "klein / tuned": "0.80",
    }
    assert row(size, "memory, peak")["klein"] == "16.9 GB"
    assert row(size, "PNG, in memory")["limit"] == ""
    assert row(size, "images a second, PNGs on disk")["klein / diffusers"] == "2.50"


def test_notes_hold_what_no_cell_does(result: dict[str, Any]) -> None:
    _, size, cold = tables(result)
    notes = " ".join(size.notes)
    assert "An image is 133 TFLOP: DiT linears 100, DiT attention 20.0" in notes
    assert "the limit is 130 ms: klein / it 2.00" in notes
    assert "klein and diffusers are 0.91 of 255 apart" in notes
    assert "of 8 rounds" in notes
    assert cold.notes[0] == "Of it, klein: load 3.00 s, end 500 ms."


def test_a_cold_process(result: dict[str, Any]) -> None:
    *_, cold = tables(result)
    assert row(cold, "page cache warm")["klein / diffusers"] == "0.33"
    assert row(cold, "page cache dropped, once")["klein"] == "14.0 s"
    result["cold"]["klein"]["dropped"] = None
    assert len(tables(result)[-1].rows) == 1


def test_rates(result: dict[str, Any]) -> None:
    ceilings, *_ = tables(result)
    assert row(ceilings, "copying")["rate"] == "4.28 TB/s"
    assert row(ceilings, "matrix product")["rate"] == "783 TFLOP/s"
    assert row(ceilings, "matrix product")["one call"] == "1.40 [1.40, 1.40] ms"


def test_without_a_part_its_rows_are_gone(result: dict[str, Any]) -> None:
    size = result["sizes"][0]
    size["warm"] = {"klein": warm(0.26, step=None, peak=None, held=None, reserved=None)}
    size["throughput"], size["limits"], size["pixels"] = {}, {}, {}
    result["ceilings"], result["cold"] = [], {}
    (alone,) = tables(result)
    assert alone.head == ("", "klein")
    names = [cells[0] for cells in alone.rows]
    assert "one more step" not in names
    assert not [name for name in names if "memory," in name or "second" in name]
    size["warm"], size["throughput"] = {}, {"klein": {"per_second": 0.25, "pictures": 3}}
    (rates,) = tables(result)
    assert rates.rows == (("images a second, PNGs on disk", "0.25"),)
    size["throughput"] = {}
    assert tables(result) == []


def test_every_row_fits_its_head_and_the_page_its_tables(result: dict[str, Any]) -> None:
    page = markdown(result)
    for table in tables(result):
        assert all(len(cells) == len(table.head) for cells in table.rows)
        assert f"**{table.title}**" in page
    assert page.startswith("some model on Some GPU; device cuda, dtype bfloat16; klein 0.1.0, ")
    assert page.endswith("Left out: a thing (it is not here).\n")
    bars = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert set(bars) == {5, 9}
    assert left_out(result) == ["Left out: a thing (it is not here)."]


def test_the_heading_names_a_revision(result: dict[str, Any]) -> None:
    result["model"] = {"name": "owner/model", "revision": "abc"}
    assert heading(result).startswith("owner/model at abc on Some GPU; ")
    assert heading(result).endswith("; 2026-01-31")
