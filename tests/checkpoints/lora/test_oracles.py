"""Adapters as the libraries that train them save and merge them: peft, LyCORIS, and diffusers where
it is right. Their bytes are committed (`scripts/make_adapter_golden.py`); they themselves are asked
again in tests marked `slow`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from klein_cli.checkpoints.load import read_tensor
from klein_cli.checkpoints.lora.adapter import read_adapter
from klein_cli.checkpoints.lora.changes import changes_of
from klein_cli.checkpoints.resolve import resolve
from tests.fixtures.adapters import factors, layers, spellings, write

GOLDEN = Path(__file__).parent / "golden"
MODULE = "transformer_blocks.0.attn.to_out.0"
SIDE = 64


class Small(nn.Module):
    """One layer under its official name."""

    def __init__(self) -> None:
        super().__init__()
        attention = nn.Module()
        attention.to_out = nn.ModuleList([nn.Linear(SIDE, SIDE, bias=False)])
        block = nn.Module()
        block.attn = attention
        self.transformer_blocks = nn.ModuleList([block])
        with torch.no_grad():
            self.get_parameter(f"{MODULE}.weight").copy_(weight())


def weight() -> Tensor:
    return torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(7)) * 0.1


def merged(path: Path, weights: float = 1.0) -> Tensor:
    """The layer's weight with the adapter, by klein."""
    name = f"{MODULE}.weight"
    base = weight()
    changes = changes_of([(read_adapter(path), weights)], {name: (SIDE, SIDE)}, lambda _: base)
    return changes[name](0, base.clone())


def cases() -> list[str]:
    return sorted(path.stem for path in GOLDEN.glob("*.safetensors"))


@pytest.mark.parametrize("case", cases())
def test_what_the_libraries_merged(case: str, tmp_path: Path) -> None:
    """Their factors, and the weight that they made of them."""
    held = load_file(GOLDEN / f"{case}.safetensors")
    wanted = held.pop("merged")
    config = GOLDEN / f"{case}.json"
    name = "adapter_model" if config.is_file() else "adapter"
    if config.is_file():
        (tmp_path / "adapter_config.json").write_text(config.read_text())
    save_file(held, tmp_path / f"{name}.safetensors")
    found = merged(tmp_path / f"{name}.safetensors")
    assert (found - wanted).abs().max() < 2e-6
    assert (wanted - weight()).abs().max() > 1e-3


def test_there_is_one_of_every_kind() -> None:
    assert {case.split("-")[0] for case in cases()} == {"peft", "lycoris"}
    kinds = {case.split("-")[1] for case in cases()}
    assert {"lora", "rslora", "dora", "loha", "lokr", "lokr_full"} <= kinds


@pytest.mark.slow
@pytest.mark.parametrize("case", cases())
def test_the_committed_bytes_are_what_the_libraries_make(case: str) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("lycoris")
    from make_adapter_golden import made

    tensors, config = made(case)
    held = load_file(GOLDEN / f"{case}.safetensors")
    assert tensors.keys() == held.keys()
    for name, tensor in tensors.items():
        assert torch.allclose(tensor, held[name], atol=1e-6), name
    if config is not None:
        assert config == json.loads((GOLDEN / f"{case}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ai-toolkit", "musubi-tuner", "OneTrainer", "fal", "peft"])
def test_what_diffusers_loads_right(small_snapshot: Path, tmp_path: Path, name: str) -> None:
    """In the few spellings in which it does; it merges when it is told."""
    pytest.importorskip("peft")
    from diffusers import Flux2KleinPipeline

    tensors = resolve(str(small_snapshot)).part("transformer").tensors()
    shapes = {key: held.shape for key, held in tensors.items()}
    given = factors(4, only=[layer for layer in layers() if "blocks" in layer])
    path = write(tmp_path / "a.safetensors", spellings(given)[name])
    pipe = Flux2KleinPipeline.from_pretrained(small_snapshot, local_files_only=True)
    pipe.load_lora_weights(path)
    pipe.fuse_lora()
    theirs = {
        key.replace(".base_layer", ""): tensor
        for key, tensor in pipe.transformer.state_dict().items()
        if "lora_" not in key
    }
    changes = changes_of([(read_adapter(path), 1.0)], shapes, lambda key: read_tensor(tensors[key]))
    assert changes
    for key, change in changes.items():
        ours = change(0, read_tensor(tensors[key]).float().clone())
        assert (ours - theirs[key]).abs().max() < 1e-5 * ours.abs().max(), key
