"""The presets say what the models are: above all, which hidden states were trained with."""

from __future__ import annotations

import pytest

from klein_cli.presets import TAPPED_LAYERS, presets, unnamed_preset


@pytest.mark.parametrize("name", presets())
def test_every_model_is_tapped_after_9_18_and_27_layers(name: str) -> None:
    """Black Forest Labs' OUTPUT_LAYERS_QWEN3; other layers make other images, not an error."""
    assert presets()[name].tapped_layers == (9, 18, 27)


def test_a_folder_without_a_preset_is_tapped_there_too() -> None:
    for distilled in (True, False):
        assert unnamed_preset("mine", distilled=distilled).tapped_layers == (9, 18, 27)
    assert TAPPED_LAYERS == (9, 18, 27)


@pytest.mark.parametrize(
    ("name", "distilled", "steps", "guidance"),
    [
        ("klein-4b", True, 4, 1.0),
        ("klein-9b", True, 4, 1.0),
        ("klein-9b-kv", True, 4, 1.0),
        ("tiny", True, 4, 1.0),
        ("klein-base-4b", False, 50, 4.0),
        ("klein-base-9b", False, 50, 4.0),
    ],
)
def test_steps_and_guidance(name: str, distilled: bool, steps: int, guidance: float) -> None:
    preset = presets()[name]
    assert (preset.distilled, preset.steps, preset.guidance) == (distilled, steps, guidance)


def test_one_model_keeps_its_references() -> None:
    """On the others' weights that would be another image, not an error."""
    assert [name for name, preset in presets().items() if preset.kv_cache] == ["klein-9b-kv"]
