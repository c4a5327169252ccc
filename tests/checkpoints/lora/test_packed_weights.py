"""Adapters on models in one file: BFL's layout, in bfloat16, fp8 and GGUF's Q8_0."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from klein_cli.checkpoints.load import init_on_meta, load_weights
from klein_cli.checkpoints.lora.adapter import check_fit, read_adapter
from klein_cli.checkpoints.lora.changes import changes_to
from klein_cli.checkpoints.reader import Reader
from klein_cli.checkpoints.single_file import FileCheckpoint
from klein_cli.checkpoints.source import Checkpoint
from klein_cli.models.flux2 import Flux2Transformer
from tests.fixtures.adapters import base_weights, dense, factors, spellings, write
from tests.fixtures.model_files import bfl_transformer, write_gguf
from tests.fixtures.small_models import FLUX2

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
BF16_STEP = 2.0**-8
GIVEN = {name: (up / 16, down) for name, (up, down) in factors().items()}
"""Changes that are small beside a step of fp8."""


def plain(path: Path) -> FileCheckpoint:
    return FileCheckpoint(write(path, bfl_transformer(base_weights())), "transformer")


def fp8(path: Path) -> FileCheckpoint:
    tensors = {}
    for name, tensor in bfl_transformer(base_weights()).items():
        if "_blocks" not in name or tensor.ndim < 2:
            tensors[name] = tensor
            continue
        scale = tensor.float().abs().amax() / 448
        tensors[name] = (tensor.float() / scale).to(FP8)
        tensors[f"{name}_scale"] = scale
    return FileCheckpoint(write(path, tensors), "transformer")


def q8_0(path: Path) -> FileCheckpoint:
    quants = pytest.importorskip("gguf.quants")
    kinds = pytest.importorskip("gguf").GGMLQuantizationType
    tensors = {}
    for name, tensor in bfl_transformer(base_weights()).items():
        large = "_blocks" in name and tensor.ndim == 2
        kind = kinds.Q8_0 if large else kinds.F32
        tensors[name] = (quants.quantize(np.asarray(tensor.float()), kind), kind)
    return FileCheckpoint(write_gguf(path, tensors), "transformer")


def loaded(checkpoint: Checkpoint, *, by_threads: bool, adapter: Path | None) -> dict[str, Tensor]:
    given = [] if adapter is None else [(read_adapter(adapter), 1.0)]
    with init_on_meta():
        module = Flux2Transformer(FLUX2)
    with Reader(CPU, 4096) if by_threads else nullcontext() as reader:
        handle, _ = load_weights(
            module,
            checkpoint,
            device=CPU,
            dtype=torch.bfloat16,
            changes=changes_to(checkpoint, given),
            reader=reader,
        )
    if handle is not None:
        handle.wait()
    return dict(module.state_dict())


@pytest.mark.parametrize("by_threads", [True, False], ids=["by threads", "at once"])
@pytest.mark.parametrize("kind", [plain, fp8, q8_0], ids=lambda kind: kind.__name__)
def test_the_change_is_added_to_what_is_unpacked_and_rounded_once(
    tmp_path: Path, kind: Callable[[Path], FileCheckpoint], by_threads: bool
) -> None:
    """Requantised as the file was, most of such a change would be lost."""
    checkpoint = kind(tmp_path / "model.safetensors")
    adapter = write(tmp_path / "a.safetensors", spellings(GIVEN)["ai-toolkit"])
    shapes = {name: held.shape for name, held in checkpoint.tensors().items()}
    check_fit(read_adapter(adapter), shapes, "small")
    exact = {name: tensor.double() for name, tensor in loaded_wide(checkpoint).items()}
    found = loaded(checkpoint, by_threads=by_threads, adapter=adapter)
    without = loaded(checkpoint, by_threads=by_threads, adapter=None)
    for name, change in dense(GIVEN).items():
        wanted = exact[name] + change
        error = (found[name].double() - wanted).abs()
        assert bool((error <= BF16_STEP * 1.01 * wanted.abs() + 1e-6).all()), name
        kept = (found[name].double() - without[name].double()).mul(change).sum()
        assert 0.7 < kept / change.square().sum() < 1.3, name


def loaded_wide(checkpoint: FileCheckpoint) -> dict[str, Tensor]:
    """The file's own weights in float32."""
    with init_on_meta():
        module = Flux2Transformer(FLUX2)
    load_weights(module, checkpoint, device=CPU, dtype=torch.float32)
    return dict(module.state_dict())


def test_columns_of_a_dora_are_those_of_the_unpacked_weight(tmp_path: Path) -> None:
    """Its norm runs over q, k and v, which the file has packed as one."""
    name = "double_blocks.0.img_attn.qkv"
    checkpoint = fp8(tmp_path / "model.safetensors")
    up, down = GIVEN[name]
    lengths = torch.full((1, 64), 2.0)
    tensors = {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}
    adapter = write(tmp_path / "a.safetensors", {**tensors, f"{name}.dora_scale": lengths})
    base = loaded_wide(checkpoint)
    parts = [f"transformer_blocks.0.attn.to_{part}.weight" for part in "qkv"]
    moved = torch.cat([base[part] for part in parts]).double() + up.double() @ down.double()
    wanted = 2.0 * moved / moved.norm(dim=0, keepdim=True)
    found = loaded(checkpoint, by_threads=True, adapter=adapter)
    for part, rows in zip(parts, wanted.chunk(3), strict=True):
        error = (found[part].double() - rows).abs()
        assert bool((error <= BF16_STEP * 1.01 * rows.abs() + 1e-6).all())
