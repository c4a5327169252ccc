"""Files unpacked beside diffusers, where diffusers is right: names, and its own 8 and 4 bits."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.quantizers.bfl import utils
from loaded_files import loaded
from model_files import bfl_transformer, is_large, ldm_vae, read_part, write

from klein_cli.checkpoints.single_file import FileCheckpoint


def test_names_of_the_transformer_are_diffusers(small_snapshot: Path, tmp_path: Path) -> None:
    from diffusers import Flux2Transformer2DModel

    official = read_part(small_snapshot / "transformer")
    path = write(tmp_path / "file.safetensors", bfl_transformer(official))
    (tmp_path / "config").mkdir()
    shutil.copytree(small_snapshot / "transformer", tmp_path / "config" / "transformer")
    theirs = Flux2Transformer2DModel.from_single_file(
        str(path), config=str(tmp_path / "config"), subfolder="transformer"
    ).state_dict()
    ours = loaded(FileCheckpoint(path, "transformer"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_names_of_the_vae_are_diffusers(small_snapshot: Path, tmp_path: Path) -> None:
    """But for the 7 tensors that diffusers' conversion drops."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    official = read_part(small_snapshot / "vae")
    given = ldm_vae(official)
    config = FileCheckpoint(write(tmp_path / "file", given), "vae").config()
    theirs = convert_ldm_vae_checkpoint(dict(given), config)
    ours = loaded(FileCheckpoint(tmp_path / "file", "vae"))
    dropped = {name for name in ours if name.startswith(("bn.", "quant_conv", "post_quant_conv"))}
    assert len(dropped) == 7
    assert ours.keys() - dropped <= theirs.keys()
    for name in ours.keys() - dropped:
        assert torch.equal(ours[name], theirs[name].view(ours[name].shape)), name


@pytest.mark.parametrize("kind", ["fp8r", "nvfp4"])
def test_its_own_8_and_4_bits(small_snapshot: Path, tmp_path: Path, kind: str) -> None:
    given, wanted = {}, {}
    # It makes a table where it is imported, which another test may do on the meta device.
    importlib.reload(utils)
    for name, tensor in bfl_transformer(read_part(small_snapshot / "transformer")).items():
        layer = name.removesuffix(".weight")
        if not is_large(name, tensor):
            given[name] = tensor
        elif kind == "fp8r":
            values, scale = utils.quantize_fp8r(tensor)
            given |= {name: values, f"{layer}.weight_scale": scale}
            wanted[name] = utils.dequantize_fp8r(values, scale).float()
        else:
            values, scale, scale_2 = utils.quantize_nvfp4(tensor)
            given |= {name: values, f"{layer}.weight_scale": scale}
            given[f"{layer}.weight_scale_2"] = scale_2.float()
            wanted[name] = utils.dequantize_nvfp4(values, scale, scale_2).float()
    path = write(tmp_path / "file", given, metadata={"quantization": kind})
    found = bfl_transformer(loaded(FileCheckpoint(path, "transformer")))
    assert len(wanted) > 10
    for name, tensor in wanted.items():
        assert (found[name] - tensor).abs().max() <= 1e-6 * tensor.abs().max(), name
