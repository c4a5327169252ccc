"""The text encoder against transformers' own, and what it refuses to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from encoders import (
    CONFIG,
    CPU,
    LENGTHS,
    POSITIONS,
    TAPS,
    WIDE,
    Kind,
    backend,
    ids_of,
    oracle,
    row_changes,
)
from torch import Tensor

from klein_cli.errors import ModelError
from klein_cli.models.attention import SdpaAttention
from klein_cli.models.qwen3 import Qwen3Config, rotary_embedding


def by_transformers(kind: Kind, lengths: Sequence[int]) -> Tensor:
    """The taps (taps, B, S, hidden) of transformers' Qwen3 with the weights of `kind`.

    Taken from a model of 30 layers: hidden_states[27] of one of 27 would be normalised.
    """
    import transformers

    table = {name: getattr(kind.config, name) for name in Qwen3Config.__slots__}
    theta = table.pop("rope_theta")
    config = transformers.Qwen3Config(
        **table,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        pad_token_id=None,
        attn_implementation=kind.attend.name,
    )
    reference = transformers.Qwen3Model(config).to(kind.device).eval()
    for parameter in reference.parameters():  # not reference.to(dtype): that rounds the rotary
        parameter.data = parameter.data.to(kind.dtype)
    weights = kind.build(TAPS).state_dict()
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name == "norm.weight" or int(name.split(".")[1]) >= 27 for name in missing)
    mask = (torch.arange(POSITIONS) < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        states = reference(
            ids_of(lengths).to(kind.device),
            attention_mask=mask.to(kind.device),
            output_hidden_states=True,
        ).hidden_states
    return torch.stack([states[tap] for tap in TAPS])


@pytest.mark.parametrize("theirs", ["eager", "sdpa"])
def test_every_row_is_transformers(theirs: str) -> None:
    kind = backend(theirs)
    wanted = by_transformers(kind, LENGTHS)
    assert row_changes(kind.encode(ids_of(LENGTHS), LENGTHS), wanted).max() < 1e-6


def no_worse_than_transformers(kind: Kind, lengths: Sequence[int]) -> None:
    """Half precision: our rows are as near to the float64 oracle as theirs, short and long."""
    wanted = oracle(kind.build(TAPS), ids_of(lengths), lengths)
    ours = row_changes(kind.encode(ids_of(lengths), lengths), wanted)
    known = kind if kind.attend.name != "flash-attn" else replace(kind, attend=SdpaAttention())
    theirs = row_changes(by_transformers(known, lengths), wanted)
    assert ours.mean() <= 1.05 * theirs.mean()
    assert ours.max() <= 1.25 * theirs.max()


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_bfloat16_is_as_near_as_transformers(name: str) -> None:
    no_worse_than_transformers(backend(name, dtype=torch.bfloat16), (12, 77, 512))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["eager", "sdpa", "flash-attn"])
def test_bfloat16_is_as_near_as_transformers_on_a_gpu(name: str) -> None:
    if name == "flash-attn":
        pytest.importorskip("flash_attn")
    kind = backend(name, torch.device("cuda"), torch.bfloat16, config=WIDE)
    no_worse_than_transformers(kind, (12, 77, 300, 512))


def test_rotary_angles_are_taken_in_float32() -> None:
    """Rounded to bfloat16 before the cosine, late positions are off by up to .3."""
    exact = rotary_embedding(CONFIG, POSITIONS, CPU, torch.float32)
    rounded = rotary_embedding(CONFIG, POSITIONS, CPU, torch.bfloat16)
    for wide, narrow in zip(exact, rounded, strict=True):
        assert torch.equal(wide.bfloat16(), narrow)
    assert not list(backend("sdpa").build(TAPS).buffers())


def test_a_tap_beyond_the_last_layers_input_is_refused() -> None:
    with pytest.raises(ModelError, match="hidden state 30"):
        backend("sdpa").build((9, 18, 30))


def table(**changes: object) -> dict[str, object]:
    values = {name: getattr(CONFIG, name) for name in Qwen3Config.__slots__}
    return {**values, "hidden_act": "silu", **changes}


def test_config_as_transformers_4_and_5_write_it() -> None:
    newer = table(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert Qwen3Config.from_json(table(rope_scaling=None)) == CONFIG
    assert Qwen3Config.from_json(newer) == CONFIG


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_theta": None}, "lacks rope_theta"),
        ({"head_dim": None}, "lacks head_dim"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"rope_scaling": ["yarn"]}, "does not describe its rotary angles"),
        ({"vocab_size": 10**400}, "vocab_size is 1"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan"),
    ],
)
def test_another_qwen3_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        Qwen3Config.from_json(table(**changes))
    assert len(caught.value.message) < 200, "a number of 400 digits is no line to read"
