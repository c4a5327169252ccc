"""The embedded model as a test of this machine: wrong encoders and images do not pass it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from injected import inject
from PIL import Image
from wrong_encoders import WRONG

import klein_cli.check.embedded as embedded
import klein_cli.check.golden as golden
from klein_cli.check.finding import BAD, OK
from klein_cli.check.golden import Golden, read_golden, weights_digest
from klein_cli.checkpoints.resolve import resolve

UNSEEN_BY_ONE_PROMPT = ("lengths of the longest prompt", "lengths counted from the ids")
"""Only a mixed batch, or a typed pad token, shows these."""

SEEN_BY_THE_KERNEL = ("pads see themselves",)
"""Every property holds, and check.backends finds it (tests/check/test_backends.py)."""

NOT_OF_THE_MASK = ("final norm on the last tap", "taps one layer early", "taps one layer late")
"""Padding is as it should be: these show in the image."""


@pytest.fixture(scope="module")
def drawn() -> Golden:
    """What tiny draws here: the tests' own golden image, whatever weights it has."""
    return Golden(embedded._drawn(device="cpu", dtype="float32"), "")


def test_the_golden_picture_is_of_the_tiny_that_is_here(drawn: Golden) -> None:
    """After tiny was trained again: python scripts/make_golden.py."""
    weights = weights_digest(resolve("tiny").root)
    assert read_golden().weights == read_golden(golden.EDITED).weights == weights
    assert embedded.image().state == OK
    assert embedded.edited().state == OK


def test_the_right_encoder_passes() -> None:
    finding = embedded.mask()
    assert finding.state == OK, finding.said
    assert finding.data["valid rows see pads"] == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        name
        for name in WRONG
        if name not in UNSEEN_BY_ONE_PROMPT + NOT_OF_THE_MASK + SEEN_BY_THE_KERNEL
    ],
)
def test_a_wrong_mask_is_found(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, wrong)
    finding = embedded.mask()
    assert finding.state == BAD
    assert "do not trust" in finding.hint


def test_a_wrong_tap_shows_in_the_picture(drawn: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "read_golden", lambda: drawn)
    inject(monkeypatch, NOT_OF_THE_MASK[0])
    assert embedded.image().state == BAD


def test_a_reference_out_of_place_shows_in_the_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    before = embedded._drawn(device="cpu", dtype="float32", edited=True)
    monkeypatch.setattr(embedded, "read_golden", lambda path: Golden(before, ""))
    assert embedded.edited().state == OK
    monkeypatch.setattr("klein_cli.sampling.latents.TIME_STEP", 1)
    assert embedded.edited().state == BAD


@pytest.mark.parametrize(("levels", "state"), [(0, OK), (2, OK), (3, BAD)])
def test_the_limit_is_two_levels(
    levels: int, state: str, drawn: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either way: as unsigned bytes, one level less would be 255 more."""
    pixels = drawn.pixels.copy()
    pixels[5, 5, 1], pixels[6, 6, 0] = 128 + levels, 128 - levels
    wanted = drawn.pixels.copy()
    wanted[5, 5, 1] = wanted[6, 6, 0] = 128
    monkeypatch.setattr(embedded, "_drawn", lambda **_: pixels)
    monkeypatch.setattr(embedded, "read_golden", lambda: Golden(wanted, ""))
    finding = embedded.image()
    assert finding.state == state
    assert finding.data == {"max_abs_diff": levels}


def test_weights_are_told_apart(tmp_path: Path, small_snapshot: Path) -> None:
    assert weights_digest(small_snapshot) != weights_digest(resolve("tiny").root)


def test_the_golden_file_is_small_and_says_whose_it_is() -> None:
    for path in (golden.FILE, golden.EDITED):
        assert path.stat().st_size < 30_000
        with Image.open(path) as image:
            assert image.size == (golden.RECIPE.width, golden.RECIPE.height)


@pytest.mark.gpu
def test_the_picture_on_a_gpu(drawn: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "read_golden", lambda: drawn)
    finding = embedded.image_on_gpu()
    assert finding.state == OK, finding.said
    assert torch.cuda.is_available()


@pytest.mark.gpu
def test_the_edit_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Golden(embedded._drawn(device="cpu", dtype="float32", edited=True), "")
    monkeypatch.setattr(embedded, "read_golden", lambda path: here)
    finding = embedded.edited_on_gpu()
    assert finding.state == OK, finding.said
