"""The mathematics of each kind of adapter, against a plain computation in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from klein_cli.checkpoints.lora.adapter import read_adapter
from tests.fixtures.adapters import (
    ADALN,
    base_weights,
    dense,
    factors,
    shapes,
    spelled,
    spellings,
    swapped,
    write,
    write_peft,
)
from tests.fixtures.merging import BF16_STEP, changed, differing, merged

Q, K, V = (f"transformer_blocks.0.attn.to_{name}" for name in "qkv")
OUT = "transformer_blocks.0.attn.to_out.0"
UP = "transformer_blocks.0.ff.linear_in"
QKV = "double_blocks.0.img_attn.qkv"
PROJ = "double_blocks.0.img_attn.proj"


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def change(path: Path, module: str, weight: float = 1.0) -> Tensor:
    """What the adapter at `path` adds to a module, in float64."""
    found = changed((read_adapter(path), weight))[f"{module}.weight"]
    return found.double() - base_weights()[f"{module}.weight"].double()


def assert_near(found: Tensor, wanted: Tensor) -> None:
    """Within what float32 does to a weight of this size."""
    assert (found - wanted).abs().max() < 3e-6, (found - wanted).abs().max()


@pytest.mark.parametrize(("alpha", "scale"), [(2.0, 0.5), (8.0, 2.0), (None, 1.0), (0.0, 1.0)])
def test_alpha_over_the_rank_of_the_layer_itself(
    tmp_path: Path, alpha: float | None, scale: float
) -> None:
    """Alpha that is left out doubles most of musubi-tuner's adapters by their rank."""
    for rank in (2, 4, 8):
        given = factors(rank, only=[PROJ])
        tensors = spelled(given, lambda layer: f"diffusion_model.{layer}")
        if alpha is not None:
            tensors[f"diffusion_model.{PROJ}.alpha"] = torch.tensor(alpha * rank / 4)
        path = write(tmp_path / "a.safetensors", tensors)
        assert_near(change(path, OUT), dense(given, scale)[f"{OUT}.weight"])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_alpha_is_read_in_every_type_and_shape(tmp_path: Path, kind: torch.dtype) -> None:
    given = factors(4, only=[PROJ])
    for alpha in (torch.tensor(6, dtype=kind), torch.tensor([6], dtype=kind)):
        tensors = {**spelled(given, lambda layer: layer), f"{PROJ}.alpha": alpha}
        path = write(tmp_path / "a.safetensors", tensors)
        assert_near(change(path, OUT), dense(given, 1.5)[f"{OUT}.weight"])


def test_the_strength_in_the_header_or_beside_the_file(tmp_path: Path) -> None:
    """Of peft and diffusers, with one of a layer's own, and over the root of the rank."""
    given = factors(4, only=[PROJ, "double_blocks.0.img_mlp.0"])
    tensors = spelled({OUT: given[PROJ], UP: given["double_blocks.0.img_mlp.0"]}, lambda name: name)
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"ff.linear_in": 1}}
    header = {f"transformer.{name}": value for name, value in config.items()}
    written = [
        (write_peft(tmp_path / "peft", tensors, **config), 2.0, 0.25),
        (write_peft(tmp_path / "rs", tensors, **config, use_rslora=True), 4.0, 0.5),
        (write_peft(tmp_path / "silent", tensors), 1.0, 1.0),
        (
            write(
                tmp_path / "b.safetensors", tensors, {"lora_adapter_metadata": json.dumps(header)}
            ),
            2.0,
            0.25,
        ),
    ]
    for path, first, second in written:
        assert_near(change(path, OUT), dense(given, first)[f"{OUT}.weight"])
        assert_near(change(path, UP), dense(given, second)[f"{UP}.weight"])


def test_a_strength_that_was_multiplied_into_the_factors(tmp_path: Path) -> None:
    """By its root into both, as one converter does: within a step of bfloat16."""
    given = factors(4)
    root = math.sqrt(0.75)
    folded = {name: (up * root, down * root) for name, (up, down) in given.items()}
    plain = write(tmp_path / "a.safetensors", spelled(given, lambda name: name, alpha=3.0))
    other = write(tmp_path / "b.safetensors", spelled(folded, lambda name: name))
    one, two = (merged((read_adapter(path), 1.0)) for path in (plain, other))
    for name, tensor in one.items():
        apart = (tensor.double() - two[name].double()).abs()
        assert bool((apart <= BF16_STEP * tensor.double().abs() + 1e-6).all()), name


def test_factors_are_multiplied_in_float32(tmp_path: Path) -> None:
    """In whatever they are stored: a product in bfloat16 is another, and one in fp8 an error."""
    given = factors(4, only=[PROJ])
    for kind in (torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn):
        narrow = {name: (up.to(kind), down.to(kind)) for name, (up, down) in given.items()}
        path = write(tmp_path / "a.safetensors", spelled(narrow, lambda name: name))
        wide = {name: (up.float(), down.float()) for name, (up, down) in narrow.items()}
        assert_near(change(path, OUT), dense(wide)[f"{OUT}.weight"])


def test_loha(tmp_path: Path) -> None:
    """Cut into q, k and v by rows of the first factors."""
    w1, w2 = (
        (random(192, 3, seed=1), random(3, 64, seed=2)),
        (random(192, 3, seed=3), random(3, 64)),
    )
    named = dict(zip(("w1_a", "w1_b", "w2_a", "w2_b"), (*w1, *w2), strict=True))
    tensors = {f"lora_unet_double_blocks_0_img_attn_qkv.hada_{n}": t for n, t in named.items()}
    tensors["lora_unet_double_blocks_0_img_attn_qkv.alpha"] = torch.tensor(1.5)
    path = write(tmp_path / "a.safetensors", tensors)
    wanted = 0.5 * (w1[0].double() @ w1[1].double()) * (w2[0].double() @ w2[1].double())
    for module, part in zip((Q, K, V), wanted.chunk(3), strict=True):
        assert_near(change(path, module), part)


@pytest.mark.parametrize("alpha", [1.0, 1e10, float("inf"), None])
def test_lokr_of_two_whole_factors_has_no_strength(tmp_path: Path, alpha: float | None) -> None:
    """ai-toolkit writes 1e10, which is infinite in float16. The rows of the first factor, 12, do
    not divide by 3: a layer of q, k and v cannot be cut by its factors.
    """
    w1, w2 = random(16, 8), random(12, 8, seed=2)
    tensors = {
        f"diffusion_model.{QKV}.lokr_w1": w1,
        f"diffusion_model.{QKV}.lokr_w2": w2,
    }
    if alpha is not None:
        tensors[f"diffusion_model.{QKV}.alpha"] = torch.tensor(alpha).half()
    path = write(tmp_path / "a.safetensors", tensors)
    wanted = torch.kron(w1.double(), w2.double())
    for module, part in zip((Q, K, V), wanted.chunk(3), strict=True):
        assert_near(change(path, module), part)


def test_lokr_in_factors_has_the_rank_of_the_second(tmp_path: Path) -> None:
    w1, (w1_a, w1_b) = random(8, 4), (random(8, 2, seed=2), random(2, 4, seed=3))
    w2_a, w2_b = random(8, 5, seed=4), random(5, 16, seed=5)
    second = {"lokr_w2_a": w2_a, "lokr_w2_b": w2_b, "alpha": torch.tensor(10.0)}
    firsts = [
        ({"lokr_w1": w1}, w1, 2.0),
        ({"lokr_w1_a": w1_a, "lokr_w1_b": w1_b}, w1_a.double() @ w1_b.double(), 2.0),
    ]
    for tensors, left, scale in firsts:
        named = {f"lycoris_{OUT.replace('.', '_')}.{n}": t for n, t in (tensors | second).items()}
        path = write(tmp_path / "a.safetensors", named)
        wanted = scale * torch.kron(left.double(), w2_a.double() @ w2_b.double())
        assert_near(change(path, OUT), wanted)
    named = {"lokr_w1_a": w1_a, "lokr_w1_b": w1_b, "lokr_w2": random(8, 16, seed=6)}
    named["alpha"] = torch.tensor(6.0)
    path = write(tmp_path / "a.safetensors", {f"{OUT}.{n}": t for n, t in named.items()})
    wanted = 3.0 * torch.kron(w1_a.double() @ w1_b.double(), named["lokr_w2"].double())
    assert_near(change(path, OUT), wanted)


def test_lokr_by_peft_always_has_its_strength(tmp_path: Path) -> None:
    """Even of two whole factors, unlike everybody else's."""
    w1, w2 = random(8, 8), random(8, 8, seed=2)
    tensors = {f"base_model.model.{OUT}.lokr_w1": w1, f"base_model.model.{OUT}.lokr_w2": w2}
    path = write_peft(tmp_path, tensors, peft_type="LOKR", r=100, alpha=2)
    assert_near(change(path, OUT), 0.02 * torch.kron(w1.double(), w2.double()))


def test_full_differences_of_matrices_and_norms(tmp_path: Path) -> None:
    """The halves of the last norm are swapped in FLUX.2's own layout, here as everywhere."""
    last, norm, own = random(128, 64), random(16, seed=2), random(192, 64, seed=3)
    tensors = {
        f"diffusion_model.{ADALN}.diff": last,
        "diffusion_model.double_blocks.0.txt_attn.norm.key_norm.diff": norm,
        "diffusion_model.single_blocks.1.norm.query_norm.scale.diff": norm,
        f"diffusion_model.{QKV}.diff": own,
    }
    path = write(tmp_path / "a.safetensors", tensors)
    assert_near(change(path, "norm_out.linear", 0.5), 0.5 * swapped(last).double())
    assert_near(change(path, "transformer_blocks.0.attn.norm_added_k"), norm.double())
    assert_near(change(path, "single_transformer_blocks.1.attn.norm_q"), norm.double())
    for module, part in zip((Q, K, V), own.chunk(3), strict=True):
        assert_near(change(path, module), part.double())


def test_lycoris_names_of_norms_and_fused_layers(tmp_path: Path) -> None:
    given = factors(3, only=["double_blocks.0.txt_attn.qkv"])
    fused = {"transformer_blocks.0.attn.to_added_qkv": next(iter(given.values()))}
    tensors = spelled(fused, lambda name: "lycoris_" + name.replace(".", "_"))
    tensors["lycoris_transformer_blocks_0_attn_norm_q.w_norm"] = random(16)
    path = write(tmp_path / "a.safetensors", tensors)
    for name in "qkv":
        module = f"transformer_blocks.0.attn.add_{name}_proj"
        assert_near(change(path, module), dense(given)[f"{module}.weight"])
    assert_near(change(path, "transformer_blocks.0.attn.norm_q"), random(16).double())


def dora(weight: Tensor, delta: Tensor, lengths: Tensor, dim: int) -> Tensor:
    """By its definition, in float64."""
    moved = weight.double() + delta
    return lengths.double() * moved / moved.norm(dim=dim, keepdim=True)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("dora_scale", (64, 1)),
        ("lora_magnitude_vector", (64,)),
        ("lora_magnitude_vector.weight", (64,)),
        ("lora_magnitude_vector.default.weight", (64,)),
        ("magnitude", (64,)),
        ("dora_scale", (1, 64)),
    ],
)
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_dora_by_row_and_by_column(
    tmp_path: Path, name: str, shape: tuple[int, ...], weight: float
) -> None:
    """The layer is square: the shape of the lengths alone tells rows from columns. The norm is
    that of the changed weight, and the user's weight is within it.
    """
    given = factors(4, only=[PROJ])
    lengths = random(*shape).abs() + 1
    tensors = {**spelled(given, lambda layer: layer), f"{PROJ}.{name}": lengths}
    path = write(tmp_path / "a.safetensors", tensors)
    base = base_weights()[f"{OUT}.weight"]
    by_row = shape != (1, 64)
    delta = dense(given, weight)[f"{OUT}.weight"]
    wanted = dora(base, delta, lengths.view(-1, 1) if by_row else lengths, 1 if by_row else 0)
    assert_near(change(path, OUT, weight), wanted - base.double())


def test_dora_by_column_of_a_fused_layer_is_of_all_its_rows(tmp_path: Path) -> None:
    """Of q, k and v together where the file has them as one, of each alone where it has three,
    and of what other adapters have made of them before.
    """
    given, other = factors(4, only=[QKV]), factors(2, 9, only=[QKV])
    lengths = random(1, 64).abs() + 2
    first = read_adapter(write(tmp_path / "0.safetensors", spelled(other, lambda layer: layer)))
    fused = {**spelled(given, lambda layer: layer), f"{QKV}.dora_scale": lengths}
    before, delta = dense(other, 0.5), dense(given)
    base = {name: base_weights()[f"{name}.weight"].double() for name in (Q, K, V)}
    moved = {name: base[name] + before[f"{name}.weight"] for name in base}
    stacked = dora(
        torch.cat(list(moved.values())),
        torch.cat([delta[f"{name}.weight"] for name in base]),
        lengths,
        0,
    )
    found = changed((first, 0.5), (read_adapter(write(tmp_path / "1.safetensors", fused)), 1.0))
    for module, part in zip((Q, K, V), stacked.chunk(3), strict=True):
        assert_near(found[f"{module}.weight"].double(), part)

    split = spellings(given)["OneTrainer"]
    split |= {f"transformer.{name}.dora_scale": lengths for name in (Q, K, V)}
    path = write(tmp_path / "2.safetensors", split)
    for module in (Q, K, V):
        wanted = dora(base[module], delta[f"{module}.weight"], lengths, 0)
        assert_near(change(path, module), wanted - base[module])


def test_dora_of_the_last_norm_in_the_own_layout(tmp_path: Path) -> None:
    """Its lengths have their halves swapped with the rows; those of columns have none."""
    given = factors(4, only=[ADALN])
    base = base_weights()["norm_out.linear.weight"].double()
    delta = dense(given)["norm_out.linear.weight"]
    for lengths, dim in ((random(128, 1).abs() + 1, 1), (random(1, 64).abs() + 1, 0)):
        tensors = {**spelled(given, lambda layer: layer), f"{ADALN}.dora_scale": lengths}
        path = write(tmp_path / "a.safetensors", tensors)
        wanted = dora(base, delta, swapped(lengths) if dim else lengths, dim)
        assert_near(change(path, "norm_out.linear"), wanted - base)


def test_dora_with_the_lengths_that_the_rows_have_changes_nothing(tmp_path: Path) -> None:
    given = {PROJ: (torch.zeros(64, 2), random(2, 64))}
    lengths = base_weights()[f"{OUT}.weight"].float().norm(dim=1, keepdim=True)
    tensors = {**spelled(given, lambda layer: layer), f"{PROJ}.dora_scale": lengths}
    adapter = read_adapter(write(tmp_path / "a.safetensors", tensors))
    assert differing(merged((adapter, 1.0)), base_weights()) == []


def test_weights(tmp_path: Path) -> None:
    """0 is the base and no change at all; s and -s cancel; halves add up; order is rounding."""
    one, other = (
        read_adapter(write(tmp_path / f"{seed}.safetensors", spellings(factors(4, seed))["fal"]))
        for seed in (1, 2)
    )
    base = base_weights()
    assert differing(merged((one, 0.0)), base) == []
    assert differing(merged((one, 0.0), (other, -0.0)), base) == []
    cancelled = changed((one, 0.8), (one, -0.8))
    for name, tensor in base.items():
        assert torch.allclose(cancelled[name], tensor.float(), atol=1e-5, rtol=1e-5), name
    assert differing(merged((one, 1.0), (other, 0.0)), merged((one, 1.0))) == []
    assert len(differing(merged((one, 0.5)), merged((one, 1.0)))) == 25
    pairs = [
        (merged((one, 0.5), (one, 0.5)), merged((one, 1.0))),
        (merged((one, 0.3), (other, 2.0)), merged((other, 2.0), (one, 0.3))),
    ]
    for found, wanted in pairs:
        for name, tensor in wanted.items():
            apart = (tensor.double() - found[name].double()).abs()
            assert bool((apart <= BF16_STEP * tensor.double().abs() + 1e-6).all()), name


def test_the_names_of_the_small_model() -> None:
    """What the tests above change is there, and one of them square."""
    assert shapes()[f"{OUT}.weight"] == (64, 64)
    assert shapes()[f"{UP}.weight"] == (384, 64)
