"""What cannot be used is refused by name, from the header alone, and never left out in silence."""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from klein_cli.checkpoints.lora.adapter import check_fit, read_adapter
from klein_cli.checkpoints.lora.deltas import read_factor
from klein_cli.errors import ModelError
from tests.fixtures.adapters import Tensors, factors, shapes, spelled, spellings, write, write_peft

PROJ = "double_blocks.0.img_attn.proj"
GIVEN = factors(2)


def lora(name: str, rows: int = 64, columns: int = 64, rank: int = 2) -> Tensors:
    """A layer's factors, without values."""
    return {
        f"{name}.lora_B.weight": torch.zeros(rows, rank),
        f"{name}.lora_A.weight": torch.zeros(rank, columns),
    }


def refusal(path: Path) -> str:
    """Why an adapter cannot be used with the small model, in one line."""
    with pytest.raises(ModelError) as caught:
        check_fit(read_adapter(path), shapes(), "small")
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


def with_(**changes: Tensor | None) -> Tensors:
    """A whole adapter, with tensors of one layer in place of its own, or taken out."""
    tensors = spelled(GIVEN, lambda name: name)
    for name, tensor in changes.items():
        key = f"{PROJ}.{name}"
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    return tensors


FAULTS: dict[str, tuple[Tensors, str]] = {
    "an unknown key": (
        {**with_(), "double_blocks.0.extra.weight": torch.zeros(2)},
        "is of no layer",
    ),
    "a misspelt layer": ({**with_(), **lora("double_blocks.0.img_atn.proj")}, "is of no layer"),
    "a block that is not there": (
        {**with_(), **lora("single_blocks.7.linear1", 576)},
        "changes single_transformer_blocks.7, and small has 2",
    ),
    "A without B": (with_(**{"lora_B.weight": None}), "has lora_A (lora_down) without lora_B"),
    "B without A": (with_(**{"lora_A.weight": None}), "has lora_B (lora_up) without lora_A"),
    "an alpha alone": ({f"{PROJ}.alpha": torch.tensor(1.0), **lora("img_in")}, "and no factors"),
    "half of a LoKr": ({f"{PROJ}.lokr_w1": torch.zeros(8, 8)}, "lacks lokr_w2_a and lokr_w2_b"),
    "a quarter of a LoHa": (
        {f"{PROJ}.hada_w1_a": torch.zeros(64, 2), f"{PROJ}.hada_w1_b": torch.zeros(2, 64)},
        "has hada_w1_a and hada_w1_b without hada_w2_a",
    ),
    "ranks that differ": (
        with_(**{"lora_A.weight": torch.zeros(3, 64)}),
        "do not fit each other: 64 x 2 and 3 x 64",
    ),
    "a layer of another size": (
        {**with_(**{"lora_A.weight": None, "lora_B.weight": None}), **lora(PROJ, 48)},
        "is 48 x 64, and in small 64 x 64",
    ),
    "a text encoder": (
        {**with_(), **lora("text_encoder.model.layers.0.self_attn.q_proj")},
        "changes a text encoder",
    ),
    "a text encoder of kohya's": (
        {**with_(), **lora("lora_te_model_layers_0_self_attn_q_proj")},
        "changes a text encoder",
    ),
    "a bias": (with_(diff_b=torch.zeros(64)), "changes a bias"),
    "peft's bias": (with_(**{"lora_B.bias": torch.zeros(64)}), "changes a bias"),
    "a convolution": (with_(**{"lora_mid.weight": torch.zeros(2, 2, 3, 3)}), "a convolution"),
    "four dimensions": (
        with_(**{"lora_A.weight": torch.zeros(2, 64, 1, 1)}),
        "has a factor of 4 dimensions",
    ),
    "OFT": ({**lora(PROJ), "img_in.oft_R.weight": torch.zeros(2)}, "of the kind OFT"),
    "two kinds": (with_(diff=torch.zeros(64, 64)), "is of two kinds at once"),
    "two names of one tensor": (
        {**with_(), f"diffusion_model.{PROJ}.lora_up.weight": torch.zeros(64, 2)},
        "twice, under two names",
    ),
    "fused and split": (
        {**with_(), **lora("transformer_blocks.0.attn.to_k")},
        "changes transformer_blocks.0.attn.to_k twice",
    ),
    "a part and the whole": (
        {**lora("single_blocks.0.linear1.1"), **lora("single_blocks.0.linear1", 576)},
        "attn.to_qkv_mlp_proj twice",
    ),
    "whole numbers": (
        with_(**{"lora_A.weight": torch.zeros(2, 64, dtype=torch.int8)}),
        "is stored as I8",
    ),
    "an infinite alpha": (with_(alpha=torch.tensor(float("inf"))), "has an alpha of inf"),
    "an alpha of NaN": (with_(alpha=torch.tensor(float("nan"))), "has an alpha of nan"),
    "an alpha of two": (with_(alpha=torch.ones(2)), "is not one number"),
    "lengths that do not fit": (with_(dora_scale=torch.ones(3, 1)), "do not fit each other"),
    "lengths of a difference": (
        {f"{PROJ}.diff": torch.zeros(64, 64), f"{PROJ}.dora_scale": torch.ones(64, 1)},
        "has the lengths of a DoRA, and is none",
    ),
    "an empty rank": (
        {f"{PROJ}.lora_B.weight": torch.zeros(64, 0), f"{PROJ}.lora_A.weight": torch.zeros(0, 64)},
        "is empty",
    ),
    "no adapter": ({"img_in.weight": torch.zeros(64, 16)}, "is not an adapter"),
    "FLUX.1 by its layers": (
        {**lora(PROJ), **lora("lora_unet_double_blocks_0_img_mod_lin", 384)},
        "is an adapter for FLUX.1, not for FLUX.2 [klein]",
    ),
    "FLUX.1 by diffusers' names": (
        {**lora("transformer.single_transformer_blocks.0.proj_mlp", 256)},
        "is an adapter for FLUX.1, not for FLUX.2 [klein]",
    ),
    "FLUX.1 by a layer's rows": (
        {**lora("double_blocks.0.img_mlp.0", 4 * 64)},
        "is an adapter for FLUX.1, not for FLUX.2 [klein]",
    ),
    "FLUX.1 by a single block's columns": (
        {**lora("single_blocks.0.linear2", 64, 5 * 64)},
        "is an adapter for FLUX.1, not for FLUX.2 [klein]",
    ),
    "FLUX.1 by the number of a block": (
        {**lora("double_blocks.18.img_attn.proj", 3072, 3072)},
        "is an adapter for FLUX.1, not for FLUX.2 [klein]",
    ),
    "FLUX.2 [dev] by its width": (
        {**lora("single_blocks.40.linear1", 55296, 6144)},
        "is an adapter for FLUX.2 [dev], not for FLUX.2 [klein]",
    ),
    "FLUX.2 [dev] by its guidance": (
        {**lora("guidance_in.in_layer")},
        "is an adapter for FLUX.2 [dev], not for FLUX.2 [klein]",
    ),
    "the 9B": (
        {**lora("double_blocks.0.img_attn.proj", 4096, 4096)},
        "is an adapter for FLUX.2 [klein] 9B: small is another size",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path, name: str) -> None:
    tensors, wanted = FAULTS[name]
    path = write(tmp_path / "a.safetensors", tensors)
    message = refusal(path)
    assert wanted in message
    assert str(path) in message


def test_flux1_and_the_4b_are_told_apart_where_they_can_be(tmp_path: Path) -> None:
    """By the header where the layers cannot; and where nothing tells, that is said."""
    tensors = lora("double_blocks.0.img_attn.proj", 3072, 3072)
    path = tmp_path / "a.safetensors"
    in_doubt = read_adapter(write(path, tensors))
    assert in_doubt.base == ("FLUX.2 [klein] 4B", False)
    assert in_doubt.doubt is not None
    assert "FLUX.1" in in_doubt.doubt
    for key, value in (
        ("ss_base_model_version", "flux2_klein_4b"),
        ("modelspec.architecture", "flux-2-klein-4b/lora"),
    ):
        assert read_adapter(write(path, tensors, {key: value})).doubt is None
    for key, value in (
        ("ss_base_model_version", "flux1"),
        ("modelspec.architecture", "flux-1-dev/lora"),
    ):
        with pytest.raises(ModelError, match=r"FLUX\.1"):
            read_adapter(write(path, tensors, {key: value}))
    more = tensors | lora("double_blocks.0.img_mlp.0", 18432, 3072)
    assert read_adapter(write(path, more)).base == ("FLUX.2 [klein] 4B", True)


CONFIGS: dict[str, tuple[object, str]] = {
    "another kind": ({"peft_type": "IA3"}, "of the kind IA3"),
    "no object": ([1], "is not valid JSON"),
    "an alpha in words": ({"lora_alpha": "much"}, "lora_alpha is much, not a number"),
    "an endless alpha": ({"lora_alpha": 1e300}, "not a number"),
    "a pattern": ({"alpha_pattern": {"(a+)+$": 1}}, "which is not the name of a layer"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_broken_configuration_is_refused(tmp_path: Path, name: str) -> None:
    """A pattern is a stranger's program, and may take for ever."""
    config, wanted = CONFIGS[name]
    path = write_peft(tmp_path, lora(PROJ))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert wanted in refusal(path)


def test_factors_that_are_no_numbers_and_files_that_change(tmp_path: Path) -> None:
    """Found when they are read: NaN would make every image black."""
    broken = lora(PROJ)
    broken[f"{PROJ}.lora_A.weight"][1, 2] = float("nan")
    adapter = read_adapter(write(tmp_path / "a.safetensors", broken))
    held = adapter.layers[0].factors[0].tensors["down"]
    with pytest.raises(ModelError, match="not finite"):
        read_factor(adapter, held)
    time.sleep(0.01)
    write(tmp_path / "a.safetensors", lora(PROJ))
    with pytest.raises(ModelError, match="has changed"):
        read_factor(adapter, held)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        read_factor(adapter, held)


def file_of(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _entry(shape: list[object], end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


def _many(count: int) -> bytes:
    one = _entry([0], 0)
    return json.dumps({f"{PROJ}.{n}.lora_A.weight": one for n in range(count)}).encode()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a web page": lambda: b"<html><body>log in</body></html>",
    "a pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    "a long header": lambda: struct.pack("<Q", 2**63) + b"{}",
    "deep JSON": lambda: file_of(b'{"a":' + b"[" * 200_000),
    "a negative side": lambda: file_of(
        json.dumps({f"{PROJ}.lora_A.weight": _entry([-1, 4], 16)}).encode(), b"0" * 16
    ),
    "a huge side": lambda: file_of(
        json.dumps({f"{PROJ}.lora_A.weight": _entry([2**62, 2**62], 16)}).encode(), b"0" * 16
    ),
    "a side of text": lambda: file_of(
        json.dumps({f"{PROJ}.lora_A.weight": _entry(["4"], 16)}).encode(), b"0" * 16
    ),
    "an unknown type": lambda: file_of(
        json.dumps({f"{PROJ}.lora_A.weight": _entry([4], 16, "F4")}).encode(), b"0" * 16
    ),
    "very many keys": lambda: file_of(_many(60_000)),
    "a long name": lambda: file_of(
        json.dumps({"x" * 1_000_000 + ".lora_A.weight": _entry([4], 16)}).encode(), b"0" * 16
    ),
    "a name of dots": lambda: file_of(
        json.dumps({"." * 100_000 + ".lora_A.weight": _entry([4], 16)}).encode(), b"0" * 16
    ),
    "a name that almost matches, again and again": lambda: file_of(
        json.dumps({".lora_A.default" * 30_000: _entry([4], 16)}).encode(), b"0" * 16
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_give_one_line_and_soon(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(HOSTILE[name]())
    started = time.perf_counter()
    assert len(refusal(path)) < 500
    assert time.perf_counter() - started < 5


def test_a_fuzzed_file_is_read_or_refused(tmp_path: Path) -> None:
    """Whatever byte is another, nothing but a refusal comes of it."""
    whole = write(tmp_path / "a.safetensors", spellings(GIVEN)["musubi-tuner"]).read_bytes()
    length = int.from_bytes(whole[:8], "little") + 8
    chance = random.Random(4)
    path = tmp_path / "b.safetensors"
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(length)] = chance.randrange(256)
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            check_fit(read_adapter(path), shapes(), "small")
        except ModelError:
            refused += 1
    assert refused > 100
