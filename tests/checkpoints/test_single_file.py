"""Parts in one file: the same module, bit for bit, as from the official folder."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from loaded_files import loaded
from model_files import OTHER_NAMES, Tensors, bfl_transformer, ldm_vae, read_part, write
from torch import Tensor

from klein_cli.checkpoints.folder import FolderCheckpoint
from klein_cli.checkpoints.single_file import FileCheckpoint
from klein_cli.checkpoints.source import PARTS
from klein_cli.errors import ModelError


def assert_same(found: Tensors, wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name


@pytest.fixture(scope="module")
def official(small_snapshot: Path) -> dict[str, Tensors]:
    return {part: read_part(small_snapshot / part) for part in PARTS}


@pytest.mark.parametrize("by_threads", [False, True], ids=["at once", "by threads"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("names", ["official", "other"])
def test_a_part_in_one_file_is_that_of_the_folder(
    official: dict[str, Tensors], tmp_path: Path, part: str, names: str, by_threads: bool
) -> None:
    """k and v in each other's place, or the last scale and shift, still draw an image."""
    given = official[part] if names == "official" else OTHER_NAMES[part](official[part])
    path = write(tmp_path / "file", given)
    assert_same(loaded(FileCheckpoint(path, part), by_threads=by_threads), official[part])


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("names", ["official", "other"])
def test_its_sizes_come_from_its_shapes(
    official: dict[str, Tensors], small_snapshot: Path, tmp_path: Path, part: str, names: str
) -> None:
    given = official[part] if names == "official" else OTHER_NAMES[part](official[part])
    config = FolderCheckpoint(small_snapshot / part).config()
    found = FileCheckpoint(write(tmp_path / "file", given), part, config)
    ours = {"patch_size", "out_channels"}  # null means as many as go in
    assert {k: v for k, v in found.config().items() if k not in ours} == {
        k: config.get(k, v) for k, v in found.config().items() if k not in ours
    }
    alone = FileCheckpoint(tmp_path / "file", part).config()
    assert alone["_class_name" if part != "text_encoder" else "architectures"]


@pytest.mark.parametrize(
    ("part", "prefix"),
    [
        ("transformer", "model.diffusion_model."),
        ("transformer", "diffusion_model."),
        ("vae", "first_stage_model."),
        ("vae", "vae."),
        ("text_encoder", "text_encoders.qwen3_4b.transformer."),
    ],
)
def test_a_prefix_of_all_names_does_not_count(
    official: dict[str, Tensors], tmp_path: Path, part: str, prefix: str
) -> None:
    given = official[part] if part == "text_encoder" else OTHER_NAMES[part](official[part])
    path = write(tmp_path / "file", given, prefix=prefix)
    assert_same(loaded(FileCheckpoint(path, part)), official[part])


def test_all_parts_may_be_in_one_file(official: dict[str, Tensors], tmp_path: Path) -> None:
    whole = {
        f"{prefix}{name}": tensor
        for prefix, tensors in {
            "model.diffusion_model.": bfl_transformer(official["transformer"]),
            "text_encoders.qwen3_4b.transformer.": official["text_encoder"],
            "vae.": ldm_vae(official["vae"]),
        }.items()
        for name, tensor in tensors.items()
    }
    path = write(tmp_path / "file", whole)
    for part in PARTS:
        assert_same(loaded(FileCheckpoint(path, part)), official[part])


def test_norms_may_be_called_weight(official: dict[str, Tensors], tmp_path: Path) -> None:
    given = {
        re_name: tensor
        for name, tensor in bfl_transformer(official["transformer"]).items()
        for re_name in [name.replace("_norm.scale", "_norm.weight")]
    }
    path = write(tmp_path / "file", given)
    assert_same(loaded(FileCheckpoint(path, "transformer")), official["transformer"])


def test_an_encoder_may_lack_what_is_not_needed(
    official: dict[str, Tensors], tmp_path: Path
) -> None:
    """27 layers and no final norm are all of it that klein reads."""
    given = {
        name: tensor
        for name, tensor in official["text_encoder"].items()
        if name != "model.norm.weight" and not any(f"layers.{n}." in name for n in (27, 28, 29))
    }
    config = FileCheckpoint(write(tmp_path / "file", given), "text_encoder").config()
    assert config["num_hidden_layers"] == 28
    assert (
        FileCheckpoint(
            write(tmp_path / "whole", official["text_encoder"]), "text_encoder"
        ).config()["num_hidden_layers"]
        == 30
    )


def test_a_tensor_that_no_rule_knows_is_named(official: dict[str, Tensors], tmp_path: Path) -> None:
    given = bfl_transformer(official["transformer"])
    given["double_blocks.0.img_attn.bias_table"] = torch.zeros(2)
    with pytest.raises(ModelError, match=r"bias_table, which is no tensor"):
        FileCheckpoint(write(tmp_path / "file", given), "transformer").tensors()


def test_a_tensor_that_is_there_twice_is_named(
    official: dict[str, Tensors], tmp_path: Path
) -> None:
    given = bfl_transformer(official["transformer"])
    given["x_embedder.weight"] = given["img_in.weight"] + 1
    with pytest.raises(ModelError, match=r"x_embedder\.weight twice"):
        FileCheckpoint(write(tmp_path / "file", given), "transformer").tensors()


def test_a_file_of_another_part_says_where_it_belongs(
    official: dict[str, Tensors], tmp_path: Path
) -> None:
    path = write(tmp_path / "file", official["vae"])
    with pytest.raises(ModelError, match="holds a VAE, not a transformer") as caught:
        FileCheckpoint(path, "transformer").tensors()
    assert caught.value.hint == "give it as --vae"


FOREIGN: dict[str, dict[str, tuple[int, ...]]] = {
    "FLUX.1": {"double_blocks.0.img_mod.lin.weight": (4, 4), "img_in.weight": (4, 4)},
    "Chroma": {"distilled_guidance_layer.in_proj.weight": (4, 4)},
    "Stable Diffusion 3": {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (4, 4)},
    "Stable Diffusion": {"model.diffusion_model.input_blocks.0.0.weight": (4, 4)},
    "Qwen-Image": {"transformer_blocks.0.img_mod.1.weight": (4, 4)},
    "Z-Image": {"noise_refiner.0.attention.qkv.weight": (4, 4)},
    "Wan": {"blocks.0.cross_attn.q.weight": (4, 4)},
    "T5": {"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4)},
    "CLIP": {"text_model.encoder.layers.0.self_attn.q_proj.weight": (4, 4)},
    "sees images": {
        "model.layers.0.self_attn.q_norm.weight": (4,),
        "visual.blocks.0.attn.qkv.weight": (4, 4),
    },
    "other than Qwen3": {"model.layers.0.self_attn.q_proj.weight": (4, 4)},
    "VAE of another model": {"decoder.conv_in.weight": (4, 16, 3, 3)},
    r"FLUX.2 \[dev\]": {
        "double_stream_modulation_img.lin.weight": (4, 4),
        "guidance_in.in_layer.weight": (4, 4),
    },
    "adapter": {"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": (4, 4)},
    "no part": {"weight": (4, 4)},
}


@pytest.mark.parametrize("who", FOREIGN)
def test_other_models_are_refused_by_name(tmp_path: Path, who: str) -> None:
    given = {name: torch.zeros(shape) for name, shape in FOREIGN[who].items()}
    with pytest.raises(ModelError, match=who):
        FileCheckpoint(write(tmp_path / "file", given), "transformer").tensors()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b"PK\x03\x04 data.pkl", "pickled by torch"),
        (b"\x80\x02}q\x00", "pickled"),
        (b"", "cut short"),
        (struct.pack("<Q", 10**7) + b"{}", "cut short"),
    ],
    ids=range(7),
)
def test_what_is_no_model_is_said(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ModelError, match=words):
        FileCheckpoint(tmp_path / "file", "transformer").tensors()


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        header(a=ONE, b=ONE) + bytes(8),
        header(a={**ONE, "data_offsets": [0, 4]}) + bytes(3),
        header(a={**ONE, "data_offsets": [-4, 0]}) + bytes(4),
        header(a={**ONE, "shape": [2**62, 2**62]}) + bytes(4),
        header(a={**ONE, "dtype": ["F32"]}) + bytes(4),
        struct.pack("<Q", 22) + b'{"a":{"a":1},"a":{}}  ',
        struct.pack("<Q", 2 * 10**7) + b" " * (2 * 10**7),
    ],
    ids=["overlap", "short", "negative", "huge", "wrong dtype", "doubled", "long"],
)
def test_a_hostile_header_is_one_complaint(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ModelError) as caught:
        FileCheckpoint(tmp_path / "file", "vae").tensors()
    assert "\n" not in caught.value.message


def test_flipped_bits_of_a_header_are_a_complaint_or_another_header(
    official: dict[str, Tensors], tmp_path: Path
) -> None:
    """Whatever it says, no other error, and at once."""
    given = {name: torch.zeros(2) for name in ("bn.running_mean", "decoder.conv_in.weight", "a")}
    whole = write(tmp_path / "file", given, metadata={"_quantization_metadata": {"layers": {}}})
    data = whole.read_bytes()
    length = int.from_bytes(data[:8], "little")
    drawn = torch.Generator().manual_seed(1)
    for _ in range(200):
        damaged = bytearray(data)
        for at in torch.randint(0, 8 + length, (2,), generator=drawn).tolist():
            damaged[at] ^= 1 << at % 7
        whole.write_bytes(damaged)
        with pytest.raises(ModelError) as caught:
            FileCheckpoint(whole, "vae").config()
        assert "\n" not in caught.value.message


def test_a_header_of_very_many_tensors_is_read_in_seconds(tmp_path: Path) -> None:
    names = ",".join(
        f'"a{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(250_000)
    )
    text = f"{{{names}}}".encode()
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(text)) + text)
    started = time.process_time()
    with pytest.raises(ModelError, match="a header of"):
        FileCheckpoint(tmp_path / "file", "vae").tensors()
    assert time.process_time() - started < 10


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", len(DEEP) + 6) + b'{"a":' + DEEP + b"}",
        struct.pack("<Q", 16) + b'{"a":{"shape":1}',
    ],
    ids=["deep", "torn"],
)
def test_deep_and_torn_json_is_one_complaint(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ModelError, match="broken header"):
        FileCheckpoint(tmp_path / "file", "vae").tensors()
