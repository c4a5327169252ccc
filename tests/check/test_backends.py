"""Each kernel is tried for real: right ones pass, and one that is wrong on pads alone does not."""

from __future__ import annotations

import pytest
import torch
from injected import inject
from torch import Tensor
from wrong_encoders import WRONG

import klein_cli.check.backends as backends
from klein_cli.check.finding import BAD, NOTE, OK
from klein_cli.models.attention import AttentionLengths, SdpaAttention

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_right_attention_passes(name: str) -> None:
    finding = backends.attention(name, CPU)
    assert finding.state == OK, finding.said
    assert finding.data["error"] < 2e-6


def test_a_backend_that_is_not_for_this_machine_is_a_note() -> None:
    finding = backends.attention("flash-attn", CPU)
    assert finding.state == NOTE
    assert "CUDA only" in finding.said


@pytest.mark.parametrize(
    "wrong", [name for name, kind in WRONG.items() if kind.attend.name == "wrong"]
)
def test_wrong_attention_is_found(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of these are right on every valid row."""
    inject(monkeypatch, wrong)
    finding = backends.attention("sdpa", CPU)
    assert finding.state == BAD
    assert finding.hint


def test_not_a_number_passes_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(SdpaAttention):
        def __call__(
            self, query: Tensor, key: Tensor, value: Tensor, attention_lengths: AttentionLengths
        ) -> Tensor:
            out = super().__call__(query, key, value, attention_lengths)
            out[1, -1, 0, 0] = float("nan")
            return out

    monkeypatch.setattr("klein_cli.models.attention.SdpaAttention", Broken)
    finding = backends.attention("sdpa", CPU)
    assert finding.state == BAD
    assert finding.data["error"] == "nan"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sdpa", "eager", "flash-attn"])
def test_attention_on_a_gpu(name: str) -> None:
    finding = backends.attention(name, torch.device("cuda"))
    assert finding.state == OK or (name == "flash-attn" and "not installed" in finding.said)


@pytest.mark.gpu
@pytest.mark.parametrize("probe", ["cudnn_attention", "triton", "fp8"])
def test_kernels_on_a_gpu(probe: str) -> None:
    """Right, or not to be had here; never wrong. On an H100 or H200 all three are to be had."""
    finding = getattr(backends, probe)()
    assert finding.state != BAD, finding.said
    if torch.cuda.get_device_capability() == (9, 0):
        assert finding.state == OK, finding.said
