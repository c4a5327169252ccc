"""The model in this process: what is said of it while it loads."""

from __future__ import annotations

import pytest

from klein_cli.run.executors.local import grouped


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            [
                "lm_head.weight",
                *(f"model.layers.{n}.mlp.{m}.weight" for n in range(27, 36) for m in "ab"),
                "model.norm.weight",
            ],
            "layers 27 to 35, lm_head.weight, model.norm.weight",
        ),
        (["model.layers.27.self_attn.q_norm.weight"], "layer 27"),
        ([f"layers.{n}.a" for n in (9, 10, 30, 12, 11)], "layers 9 to 12, layer 30"),
        (
            [
                "vae.quant_conv.bias",
                "vae.encoder.conv_in.bias",
                "vae.encoder.conv_in.weight",
                "lm_head.weight",
            ],
            "lm_head.weight, vae.encoder.*, vae.quant_conv.bias",
        ),
    ],
)
def test_tensors_are_told_by_layer(names: list[str], said: str) -> None:
    assert grouped(names) == said
