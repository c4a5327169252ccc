"""`klein info` of adapters: what they are, of whom and for what, and what klein does with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.fixtures.adapters import Tensors, factors, spelled, write, write_for_tiny

Klein = Callable[..., tuple[int, str, str]]
KOHYA = ("lora_up.weight", "lora_down.weight")


def facts(klein: Klein, path: Path) -> dict[str, str]:
    code, out, err = klein("info", "--json", path)
    assert (code, err) == (0, "")
    found: dict[str, str] = json.loads(out)
    return found


def layer(rows: int, columns: int, name: str = "double_blocks.0.img_mlp.0") -> Tensors:
    up, down = torch.zeros(rows, 4), torch.zeros(4, columns)
    return spelled({name: (up, down)}, lambda n: f"lora_unet_{n.replace('.', '_')}", KOHYA, alpha=2)


def test_what_an_adapter_is(klein: Klein, tmp_path: Path) -> None:
    tags = {"a": {"zxc cat": 12, "sofa": 3}, "b": {"sofa": 20}}
    metadata = {
        "ss_network_module": "networks.lora_flux_2",
        "ss_tag_frequency": json.dumps(tags),
        "modelspec.trigger_phrase": "zxc cat",
        "modelspec.title": "a\x1b[2Jtitle",
    }
    path = write(tmp_path / "a.safetensors", layer(18432, 3072), metadata)
    assert facts(klein, path) == {
        "path": str(path),
        "adapter": "LoRA of rank 4, 1 layer",
        "for": "FLUX.2 [klein] 4B",
        "alpha": "2",
        "strength": "0.5",
        "trainer": "musubi-tuner (networks.lora_flux_2)",
        "title": "a\x1b[2Jtitle",
        "trigger": "zxc cat",
        "tags": "sofa (23), zxc cat (12)",
        "sha256": facts(klein, path)["sha256"],
        "klein": f"adds it to the model's weights: --lora {path}",
    }
    code, out, _ = klein("info", path)
    assert code == 0
    assert "\x1b" not in out
    assert "     trigger  zxc cat\n" in out


@pytest.mark.parametrize(
    ("rows", "columns", "wanted"),
    [
        (24576, 4096, "FLUX.2 [klein] 9B"),
        (384, 64, "a model of none of the published sizes"),
    ],
)
def test_for_which_model(
    klein: Klein, tmp_path: Path, rows: int, columns: int, wanted: str
) -> None:
    path = write(tmp_path / "a.safetensors", layer(rows, columns))
    assert facts(klein, path)["for"] == wanted


def test_one_that_may_be_for_flux1(klein: Klein, tmp_path: Path) -> None:
    attention = layer(3072, 3072, "double_blocks.0.img_attn.proj")
    path = write(tmp_path / "a.safetensors", attention)
    wanted = "FLUX.2 [klein] 4B, or FLUX.1: nothing in it tells them apart"
    assert facts(klein, path)["for"] == wanted


def test_one_that_klein_refuses_is_described_all_the_same(klein: Klein, tmp_path: Path) -> None:
    metadata = {"software": '{"name": "ai-toolkit", "version": "0.7"}', "trigger_word": "zxc"}
    path = write(tmp_path / "a.safetensors", layer(12288, 3072), metadata)
    found = facts(klein, path)
    assert found["klein"] == (
        f"refuses it: {path} is an adapter for FLUX.1, not for FLUX.2 [klein]"
    )
    assert (found["trainer"], found["trigger"]) == ("ai-toolkit 0.7", "zxc")


def test_hostile_words_are_bounded(klein: Klein, tmp_path: Path) -> None:
    metadata = {
        "ss_tag_frequency": '{"a":' + "[" * 100_000,
        "software": "[1]",
        "trigger_word": "x" * 100_000,
    }
    path = write(tmp_path / "a.safetensors", layer(384, 64), metadata)
    found = facts(klein, path)
    assert len(found["trigger"]) == 300
    assert not {"tags", "trainer"} & found.keys()


def test_kinds_are_named(klein: Klein, tmp_path: Path) -> None:
    name = "double_blocks.0.img_attn.proj"
    tensors = spelled(factors(4, only=[name]), lambda n: n)
    tensors[f"{name}.dora_scale"] = torch.ones(64, 1)
    tensors["double_blocks.0.txt_attn.norm.key_norm.diff"] = torch.zeros(16)
    found = facts(klein, write(tmp_path / "a.safetensors", tensors))
    assert found["adapter"] == "DoRA, full of rank 4, 2 layers"


def test_the_fixture_is_an_adapter_for_tiny(klein: Klein, tmp_path: Path) -> None:
    found = facts(klein, write_for_tiny(tmp_path / "a.safetensors"))
    assert found["adapter"].startswith("LoRA of rank 2")
