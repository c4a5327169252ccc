"""--size, --aspect, -W and -H, --expand, and what is edited -> pixels."""

from __future__ import annotations

import pytest

from klein_cli.errors import UsageError
from klein_cli.presets import presets
from klein_cli.prompts.sizes import (
    edited_size,
    fit_aspect,
    image_size,
    parse_aspect,
    parse_expand,
    parse_size,
)

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


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ((None, None), (1168, 880)),
        ((584, None), (584, 448)),
        ((None, 880), (1168, 880)),
        ((512, 512), (512, 512)),
        ((2048, 2048), (2048, 2048)),
    ],
)
def test_an_edit_has_the_shape_of_its_first_image(
    asked: tuple[int | None, int | None], wanted: tuple[int, int]
) -> None:
    """Each side by itself, as in other programs, would squeeze the image."""
    width, height = asked
    assert edited_size((1168, 880), KLEIN, width=width, height=height) == wanted


def test_one_side_alone_never_makes_an_edit_of_another_regime() -> None:
    assert edited_size((64, 64), KLEIN, width=1040, height=None) == (1040, 1040)
    with pytest.raises(UsageError, match="1056x1056, more than a megapixel") as caught:
        edited_size((64, 64), KLEIN, width=1056, height=None)
    assert "--size 1056x1056" in caught.value.hint


@pytest.mark.parametrize(
    ("image", "wanted"),
    [((1168, 880), (384, 288)), ((64, 64), (128, 128)), ((256, 128), (256, 128))],
)
def test_a_size_that_the_model_does_not_make_becomes_the_nearest_of_its_shape(
    image: tuple[int, int], wanted: tuple[int, int]
) -> None:
    assert edited_size(image, TINY, width=None, height=None) == wanted


def test_a_shape_that_the_model_does_not_make_is_refused() -> None:
    with pytest.raises(UsageError, match="tiny makes no image as long and narrow as 512x64"):
        edited_size((512, 64), TINY, width=None, height=None)


@pytest.mark.parametrize(
    ("text", "sides"),
    [("64", (64,) * 4), ("0,0,256,0", (0, 0, 256, 0)), (" 1, 2 ,3,4", (1, 2, 3, 4))],
)
def test_expand_is_one_number_or_four(text: str, sides: tuple[int, ...]) -> None:
    assert parse_expand(text) == sides


@pytest.mark.parametrize(
    "text", ["", "a", "1,2", "1,2,3", "-1", "1,,2,3", "1.5", "٣", "0", "99999"]
)
def test_any_other_expand_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expand"):
        parse_expand(text)
