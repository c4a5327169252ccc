"""One adapter as every trainer writes it is one adapter: bitwise, and as a plain sum has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from klein_cli.checkpoints.lora.adapter import check_fit, coverage, read_adapter
from klein_cli.checkpoints.lora.changes import changes_of
from klein_cli.checkpoints.lora.targets import target_of
from tests.fixtures import adapters
from tests.fixtures.adapters import ADALN, base_weights, dense, factors, shapes, spellings, write
from tests.fixtures.merging import BF16_STEP, changed, differing, merged

GIVEN = factors()
NAMES = list(spellings(GIVEN))


@pytest.mark.parametrize("name", NAMES)
def test_one_adapter_is_the_same_in_every_spelling(tmp_path: Path, name: str) -> None:
    """A name that is not known, a transposed factor, q, k and v in another order, halves of the
    last norm that are not swapped, or swapped where the file has them right: all show here.
    """
    found = read_adapter(write(tmp_path / "a.safetensors", spellings(GIVEN)[name]))
    check_fit(found, shapes(), "small")
    weights, wanted = merged((found, 1.0)), dense(GIVEN)
    plain = read_adapter(write(tmp_path / "b.safetensors", spellings(GIVEN)["OneTrainer"]))
    assert differing(weights, merged((plain, 1.0))) == []
    for tensor, base in base_weights().items():
        exact = base.double() + wanted.get(tensor, torch.zeros(()).double())
        error = (weights[tensor].double() - exact).abs()
        assert bool((error <= BF16_STEP / 2 * 1.01 * exact.abs() + 1e-6).all()), tensor
    assert coverage(found, shapes()) == "25 of 25 layers"


def test_every_layer_is_changed_and_by_its_own_amount(tmp_path: Path) -> None:
    """What the test above compares is not all alike: each of q, k and v has another change."""
    found = read_adapter(write(tmp_path / "a.safetensors", spellings(GIVEN)["ai-toolkit"]))
    weights, base = merged((found, 1.0)), base_weights()
    assert set(differing(weights, base)) == {n for n, shape in shapes().items() if len(shape) == 2}
    q, k, v = (dense(GIVEN)[f"transformer_blocks.0.attn.to_{n}.weight"] for n in "qkv")
    for one, other in ((q, k), (k, v), (q, v)):
        assert (one - other).abs().max() > 0.01


def test_only_the_last_norm_of_the_own_layout_has_its_halves_swapped(tmp_path: Path) -> None:
    """Diffusers puts them unswapped; others swap the factor in the middle, over its ranks."""
    up, down = factors(rank=2, only=[ADALN])[ADALN]
    up[: up.shape[0] // 2] = 0
    own = {f"{ADALN}.lora_B.weight": up, f"{ADALN}.lora_A.weight": down}
    official = {"norm_out.linear.lora_B.weight": up, "norm_out.linear.lora_A.weight": down}
    base = base_weights()["norm_out.linear.weight"]
    for tensors, touched in ((own, slice(None, 64)), (official, slice(64, None))):
        adapter = read_adapter(write(tmp_path / "a.safetensors", tensors))
        change = changed((adapter, 1.0))["norm_out.linear.weight"] - base.float()
        assert change.abs().amax(1)[touched].min() > 0
        wanted = up[64:] @ down
        assert torch.allclose(change[touched], wanted, atol=1e-5)
        assert change.abs().sum() == change[touched].abs().sum()


def test_rows_that_come_in_pieces_are_changed_as_all_at_once(tmp_path: Path) -> None:
    """Pieces that begin within a layer of several tensors, or straddle the halves of the norm."""
    for name in ("ai-toolkit", "OneTrainer, parts", "musubi-tuner, parts"):
        adapter = read_adapter(write(tmp_path / "a.safetensors", spellings(GIVEN)[name]))
        base = base_weights()
        changes = changes_of([(adapter, 0.7)], shapes(), base.__getitem__)
        for tensor, change in changes.items():
            whole = change(0, base[tensor].float().clone())
            size = 1 + base[tensor].shape[0] // 3
            cut = base[tensor].float().clone().split(size)
            pieces = [change(size * number, piece) for number, piece in enumerate(cut)]
            assert torch.allclose(torch.cat(pieces), whole, rtol=1e-6, atol=1e-6), (name, tensor)


def test_names_are_looked_up_and_not_guessed() -> None:
    """Underscores within names are not dots, and numbers are numbers of blocks."""
    wanted = "transformer_blocks.3.ff_context.linear_in"
    for path in ("double_blocks_3_txt_mlp_0", "double_blocks.3.txt_mlp.0", wanted):
        target = target_of(path)
        assert target is not None
        assert target.modules == (wanted,)
    for path in (
        "double_blocks_03_txt_mlp_0",
        "double_blocks_3_txt_mlp",
        "double_blocks_3_txt_mlp_1",
        "double_blocks_N_txt_mlp_0",
        "double_blocks_-1_txt_mlp_0",
        "double_blocks_3_txt_mlp_0_",
        "",
    ):
        assert target_of(path) is None, path


def test_the_names_of_the_fixture_are_all_that_the_model_has() -> None:
    modules = {module for layer in adapters.layers() for module in adapters.official(layer)}
    matrices = {name for name, shape in shapes().items() if len(shape) == 2}
    assert {f"{module}.weight" for module in modules} == matrices
