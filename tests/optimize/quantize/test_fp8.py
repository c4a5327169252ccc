"""fp8 in plain torch: what a row keeps of itself, which layers it is for, and how far it is off."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from small_models import FLUX2, distance, filled, flux2_inputs
from torch import nn

from klein_cli.errors import ModelError
from klein_cli.models.flux2 import Flux2Transformer
from klein_cli.optimize.quantize.fp8 import FP8, Fp8Linear, Scaled, quantise, scaled


def dit() -> Flux2Transformer:
    return filled(Flux2Transformer(FLUX2)).to(torch.bfloat16)


def test_each_row_is_scaled_by_its_largest_value() -> None:
    x = torch.randn(3, 64) * torch.tensor([[1e-4], [1.0], [1e4]])
    values, scales = scaled(x)
    assert values.dtype == FP8
    assert scales.shape == (3, 1)
    assert torch.equal(values.float().abs().amax(-1), torch.full((3,), 448.0))
    assert ((values.float() * scales - x).norm(dim=-1) / x.norm(dim=-1)).max() < 0.035


def test_rows_of_zeros_stay_zeros() -> None:
    values, scales = scaled(torch.zeros(2, 16))
    assert not (values.float() * scales).any()
    assert scales.isfinite().all()


def test_a_layer_takes_a_tensor_or_what_is_quantised_already() -> None:
    linear = nn.Linear(64, 48, bias=False).requires_grad_(False).to(torch.bfloat16)
    x = torch.randn(2, 5, 64, dtype=torch.bfloat16)
    layer = Fp8Linear({"weight": linear.weight}, scaled)
    found = layer(x)
    assert found.shape == (2, 5, 48)
    assert found.dtype == torch.bfloat16
    assert 0.001 < distance(found, linear(x)) < 0.06
    assert torch.equal(layer(scaled(x)), found)
    assert isinstance(scaled(x), Scaled)


@pytest.mark.parametrize("rows", [1, 5, 48, 99])
def test_a_weight_quantised_in_parts_is_the_same(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("klein_cli.optimize.quantize.fp8._ROWS", rows)
    weight = torch.randn(48, 64, dtype=torch.bfloat16)
    layer, whole = Fp8Linear({"weight": weight}, scaled), scaled(weight)
    assert torch.equal(layer.get_buffer("values").float(), whole.values.float())
    assert torch.equal(layer.get_buffer("scales"), whole.scales.t())


def test_sides_that_the_product_cannot_take_are_refused() -> None:
    with pytest.raises(ModelError, match="24 by 32 channels") as caught:
        Fp8Linear({"weight": torch.ones(32, 24)}, scaled)
    assert "--quantize" in caught.value.hint


def test_the_blocks_layers_are_quantised_and_nothing_else() -> None:
    model = dit()
    names = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    quantise(model)
    left = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert left == {n for n in names if "blocks." not in n}
    assert left
    kinds = {n: p.dtype for n, p in model.state_dict().items() if "blocks." in n and p.ndim == 2}
    assert all(kind == FP8 for n, kind in kinds.items() if n.endswith("values"))
    held = sum(p.numel() * p.itemsize for p in model.state_dict().values())
    whole = sum(p.numel() * p.itemsize for p in dit().state_dict().values())
    assert held < 0.75 * whole  # q, k and v of double blocks are held by their projection alone


def test_the_velocity_is_near_and_not_the_same() -> None:
    exact = dit().float()(*flux2_inputs(torch.float32))
    inputs, model = flux2_inputs(torch.bfloat16), dit()
    plain = distance(model(*inputs), exact)
    quantise(model)
    assert 2 * plain < distance(model(*inputs), exact) < 0.1


def test_a_picture_does_not_depend_on_its_neighbour() -> None:
    """A scale for a whole tensor, instead of a row, would let images touch each other."""
    model = dit()
    quantise(model)
    latents, *rest = flux2_inputs(torch.bfloat16)
    together = model(latents, *rest)
    louder = latents.clone()
    louder[1] *= 50
    beside = model(louder, *rest)
    assert torch.equal(beside[0], together[0])
    assert not torch.equal(beside[1], together[1])


@pytest.mark.gpu
def test_fp8_takes_less_than_the_whole_on_a_gpu() -> None:
    """What a quantised model held before is given back."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no fp8 on this GPU")
    wide = replace(FLUX2, num_attention_heads=64, num_single_layers=8)
    gc.collect()
    others = torch.cuda.memory_allocated()
    model = Flux2Transformer(wide).to("cuda", torch.bfloat16).requires_grad_(False)
    before = torch.cuda.memory_allocated() - others
    quantise(model)
    assert torch.cuda.memory_allocated() - others < 0.6 * before
