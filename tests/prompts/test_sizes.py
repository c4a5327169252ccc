"""--size, --aspect, -W and -H -> pixels."""

from __future__ import annotations

import pytest

from klein_cli.errors import UsageError
from klein_cli.presets import presets
from klein_cli.prompts.sizes import fit_aspect, image_size, parse_aspect, parse_size

TINY = presets()["tiny"]
KLEIN = presets()["klein-4b"]


def size(**given: object) -> tuple[int | None, int | None]:
    values = dict.fromkeys(("width", "height", "size", "aspect")) | given
    return image_size(KLEIN, **values)  # type: ignore[arg-type]


def test_what_is_not_asked_for_is_left_open() -> None:
    assert size() == (None, None)
    assert size(width=512) == (512, None)
    assert size(height=512) == (None, 512)
    assert size(size="640x480") == (640, 480)


@pytest.mark.parametrize(
    "given",
    [
        {"width": 512, "size": "512x512"},
        {"height": 512, "aspect": "1:1"},
        {"size": "512x512", "aspect": "1:1"},
    ],
)
def test_two_ways_at_once_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="more than one way"):
        size(**given)


@pytest.mark.parametrize("text", ["640x480", "640X480", " 640 × 480 "])
def test_parse_size(text: str) -> None:
    assert parse_size(text) == (640, 480)


@pytest.mark.parametrize(
    "text", ["640", "640x", "x480", "640x480x3", "-640x480", "6.4x4", "axb", ""]
)
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="not a valid size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "ratio"),
    [("16:9", 16 / 9), ("16/9", 16 / 9), ("16x9", 16 / 9), ("1.5", 1.5), ("2.39:1", 2.39)],
)
def test_parse_aspect(text: str, ratio: float) -> None:
    assert parse_aspect(text) == pytest.approx(ratio)


@pytest.mark.parametrize("text", ["0:9", "16:0", "16:", ":9", "wide", "-16:9", "nan", "1e5", ""])
def test_parse_aspect_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="not a valid aspect"):
        parse_aspect(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1:1", (1024, 1024)), ("16:9", (1360, 768)), ("9:16", (768, 1360)), ("3:2", (1248, 832))],
)
def test_an_aspect_keeps_the_pixel_count_of_the_preset(
    text: str, expected: tuple[int, int]
) -> None:
    assert size(aspect=text) == expected
    assert expected[0] * expected[1] == pytest.approx(1024 * 1024, rel=0.03)


def test_an_aspect_starts_from_the_models_own_size_or_from_anothers() -> None:
    """The size of an image that is drawn again was once taken for the model's own."""
    asked = {"width": None, "height": None, "size": None, "aspect": "16:9"}
    assert image_size(TINY, **asked) == (336, 192)
    assert image_size(TINY, **asked, like=(192, 192)) == (256, 144)


def test_an_aspect_too_long_for_the_model_is_refused() -> None:
    with pytest.raises(UsageError, match="makes 576x112, out of range for tiny") as caught:
        fit_aspect(5.0, TINY, 256 * 256)
    assert "128 to 384" in caught.value.hint
