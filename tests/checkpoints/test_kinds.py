"""Packed weights: told from plain ones layer by layer, unpacked exactly, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loaded_files import loaded
from model_files import Tensors, write
from safetensors.torch import load_file
from torch import Tensor

from klein_cli.checkpoints.folder import FolderCheckpoint
from klein_cli.checkpoints.header import read_header
from klein_cli.checkpoints.kinds import packed, summary
from klein_cli.checkpoints.single_file import FileCheckpoint
from klein_cli.checkpoints.source import Stored
from klein_cli.errors import ModelError

GOLDEN = load_file(Path(__file__).with_name("packed.safetensors"))
FP8 = torch.float8_e4m3fn
ROWS, COLUMNS = 256, 192


class Packs:
    """A checkpoint of one file whose names are official already."""

    def __init__(self, path: Path) -> None:
        self.place, self.files = str(path), [path]

    def written_config(self) -> bytes:
        return b""

    def config(self) -> dict[str, Any]:
        return {}

    def tensors(self) -> dict[str, Stored]:
        header = read_header(self.files[0])
        return packed(header.tensors, header.metadata, self.place)


def unpacked(path: Path, tensors: Tensors, **metadata: Any) -> Tensors:
    """What klein makes of a file, by both ways of reading, which must agree."""
    given = write(path / "file", tensors, metadata=metadata)
    once, threaded = loaded(Packs(given)), loaded(Packs(given), by_threads=True)
    assert all(torch.equal(once[name], threaded[name]) for name in once)
    return once


def weights(seed: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """Each row of its own size, so that a scale of another row shows."""
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.linspace(0.1, 4, rows)[:, None]


def fp8(scale: Tensor, dtype: torch.dtype = FP8) -> tuple[Tensor, Tensor]:
    """Values in 8 bits, and what they are with a scale of the weights' own shape."""
    values = (weights() / scale).to(dtype)
    return values, values.float() * scale


def comfy(kind: str, **more: Any) -> Tensor:
    return torch.tensor(list(json.dumps({"format": kind, **more}).encode()), dtype=torch.uint8)


def declared(**formats: str) -> dict[str, Any]:
    layers = {name: {"format": kind} for name, kind in formats.items()}
    return {"_quantization_metadata": {"format_version": "1.0", "layers": layers}}


SCALES = {
    "one": torch.tensor(0.02),
    "one of one": torch.tensor([0.02]),
    "a row": torch.linspace(0.01, 0.05, ROWS),
    "a row of one": torch.linspace(0.01, 0.05, ROWS)[:, None],
}


@pytest.mark.parametrize("shape", SCALES)
@pytest.mark.parametrize("name", ["weight_scale", "scale_weight"])
@pytest.mark.parametrize("dtype", [FP8, torch.float8_e5m2])
def test_fp8_in_every_spelling(tmp_path: Path, shape: str, name: str, dtype: torch.dtype) -> None:
    scale = SCALES[shape]
    values, wanted = fp8(scale.view(-1, 1) if scale.numel() > 1 else scale, dtype)
    given = {"x.weight": values, f"x.{name}": scale, "x.input_scale": torch.tensor(7.0)}
    assert torch.equal(unpacked(tmp_path, given)["x.weight"], wanted)
    given |= {f"x.{name}": scale * 2, "x.input_scale": torch.tensor(9.0)}
    assert torch.equal(unpacked(tmp_path, given)["x.weight"], wanted * 2), "the scale counts once"


def test_the_marker_of_older_files_is_no_tensor_of_the_model(tmp_path: Path) -> None:
    values, wanted = fp8(SCALES["one"])
    given = {"x.weight": values, "x.scale_weight": SCALES["one"], "x.scale_input": SCALES["one"]}
    given["scaled_fp8"] = torch.zeros(2).to(FP8)
    found = unpacked(tmp_path, given)
    assert found.keys() == {"x.weight"}
    assert torch.equal(found["x.weight"], wanted)


def test_fp8_in_groups_of_columns(tmp_path: Path) -> None:
    scale = torch.linspace(0.01, 0.09, ROWS * 3).view(ROWS, 3, 1)
    values, wanted = fp8(scale.repeat_interleave(64, dim=1).view(ROWS, COLUMNS))
    found = unpacked(tmp_path, {"x.weight": values, "x.scale_weight": scale})
    assert torch.equal(found["x.weight"], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_in_blocks_as_qwens(tmp_path: Path, dtype: torch.dtype) -> None:
    """Multiplied, whatever the name says; 192 columns are one block and a half."""
    scale = torch.tensor([[0.01, 0.03], [0.05, 0.125]]).to(dtype)
    wide = scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1)[:, :COLUMNS]
    values, wanted = fp8(wide)
    write(tmp_path / "model.safetensors", {"x.weight": values, "x.weight_scale_inv": scale})
    found = loaded(FolderCheckpoint(tmp_path))
    assert torch.equal(found["x.weight"], wanted)


def test_fp8_that_was_only_cast_has_no_scale(tmp_path: Path) -> None:
    values = weights().to(FP8)
    found = unpacked(tmp_path, {"x.weight": values, "y.weight": values.bfloat16()})
    assert torch.equal(found["x.weight"], values.float())


def test_fp8_without_its_scale_is_refused_where_others_have_one(tmp_path: Path) -> None:
    """It would still draw a picture."""
    values, _ = fp8(SCALES["one"])
    given = {"x.weight": values, "y.weight": values, "y.weight_scale": SCALES["one"]}
    with pytest.raises(ModelError, match=r"x\.weight is stored as F8_E4M3 without its scale"):
        unpacked(tmp_path, given)


def e2m1(codes: Tensor) -> Tensor:
    sizes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    return sizes[codes & 7] * torch.where(codes & 8 > 0, -1.0, 1.0)


def nvfp4(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales, each of its own by row and block, and the weights, computed one by one."""
    r, c = torch.arange(rows)[:, None], torch.arange(columns)
    codes = (r * 7 + c * 3 + c // 16) % 16
    blocks = torch.arange(columns // 16)
    bits = (r * 11 + blocks * 5) % 126 + 1
    scales = bits.to(torch.uint8).view(FP8)
    wanted = e2m1(codes) * scales.float().repeat_interleave(16, 1) * 0.37
    return codes, scales, wanted


def swizzled(scales: Tensor) -> Tensor:
    rows, blocks = scales.shape
    high, wide = -(-rows // 128) * 128, -(-blocks // 4) * 4
    flat = torch.zeros(high * wide, dtype=torch.uint8)
    for r in range(rows):
        for c in range(blocks):
            at = (r // 128 * (wide // 4) + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4
            flat[at] = scales.view(torch.uint8)[r, c]
    return flat.view(FP8).view(high, wide)


def test_nvfp4_in_both_layouts_by_what_the_file_says(tmp_path: Path) -> None:
    """Names, shapes and dtypes are the same, and in the wrong one all is noise."""
    codes, scales, wanted = nvfp4(ROWS, 256)
    even, odd = codes[:, ::2], codes[:, 1::2]
    scale_2 = torch.tensor(0.37)
    ours = {"x.weight": (even << 4 | odd).to(torch.uint8), "x.weight_scale": swizzled(scales)}
    theirs = {"x.weight": (odd << 4 | even).to(torch.uint8), "x.weight_scale": scales}
    more = {"x.weight_scale_2": scale_2, "x.input_scale": torch.tensor(3.0)}
    for given, said in (
        (ours | more, declared(x="nvfp4")),
        (ours | more | {"x.comfy_quant": comfy("nvfp4")}, {}),
        (theirs | more, {"quantization": "nvfp4"}),
    ):
        found = unpacked(tmp_path, given, **said)["x.weight"]
        assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    wrong = unpacked(tmp_path, theirs | more, **declared(x="nvfp4"))["x.weight"]
    assert (wrong - wanted).abs().max() > 1
    with pytest.raises(ModelError, match="without saying in which of its two layouts"):
        unpacked(tmp_path, ours | more)


@pytest.mark.parametrize("columns", [192, 80])
@pytest.mark.parametrize("rows", [256, 144])
def test_nvfp4_scales_are_padded(tmp_path: Path, rows: int, columns: int) -> None:
    codes, scales, wanted = nvfp4(rows, columns)
    given = {
        "x.weight": (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8),
        "x.weight_scale": swizzled(scales),
        "x.weight_scale_2": torch.tensor(0.37),
    }
    found = unpacked(tmp_path, given, **declared(x="nvfp4"))["x.weight"]
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    given["x.weight_scale_2"] *= 2
    doubled = unpacked(tmp_path, given, **declared(x="nvfp4"))["x.weight"]
    assert torch.equal(doubled, found * 2)


def test_nvfp4_is_what_comfyuis_kernels_make_of_it(tmp_path: Path) -> None:
    given = {f"x.{name}": GOLDEN[f"nvfp4.{name}"] for name in ("weight", "weight_scale")}
    given["x.weight_scale_2"] = GOLDEN["nvfp4.weight_scale_2"]
    found = unpacked(tmp_path, given, **declared(x="nvfp4"))
    assert torch.equal(found["x.weight"], GOLDEN["nvfp4.wanted"].float())


@pytest.mark.parametrize("group", [16, 64])
def test_rotated_int8_is_what_comfyuis_kernels_make_of_it(tmp_path: Path, group: int) -> None:
    given = {f"x.{name}": GOLDEN[f"int8_{group}.{name}"] for name in ("weight", "weight_scale")}
    given["x.comfy_quant"] = comfy("int8_tensorwise", convrot=True, convrot_groupsize=group)
    found, wanted = unpacked(tmp_path, given)["x.weight"], GOLDEN[f"int8_{group}.wanted"]
    assert (found - wanted).abs().max() <= 2e-6 * wanted.abs().max()


@pytest.mark.parametrize("shape", SCALES)
def test_int8(tmp_path: Path, shape: str) -> None:
    values = (weights() * 10).clamp(-127, 127).to(torch.int8)
    scale = SCALES[shape]
    given = {"x.weight": values, "x.weight_scale": scale, "x.comfy_quant": comfy("int8_tensorwise")}
    wanted = values.float() * (scale.view(-1, 1) if scale.numel() > 1 else scale)
    assert torch.equal(unpacked(tmp_path, given)["x.weight"], wanted)


def test_layers_of_one_file_may_differ(tmp_path: Path) -> None:
    values, wanted = fp8(SCALES["one"])
    codes, scales, fp4 = nvfp4(ROWS, 256)
    whole = (weights() * 10).clamp(-127, 127).to(torch.int8)
    given = {
        "a.weight": weights().bfloat16(),
        "b.weight": values,
        "b.weight_scale": SCALES["one"],
        "b.comfy_quant": comfy("float8_e4m3fn"),
        "c.weight": (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8),
        "c.weight_scale": swizzled(scales),
        "c.weight_scale_2": torch.tensor(0.37),
        "c.comfy_quant": comfy("nvfp4"),
        "d.weight": whole,
        "d.weight_scale": SCALES["one"],
        "d.comfy_quant": comfy("int8_tensorwise"),
    }
    found = unpacked(tmp_path, given)
    assert torch.equal(found["a.weight"], weights().bfloat16().float())
    assert torch.equal(found["b.weight"], wanted)
    assert (found["c.weight"] - fp4).abs().max() <= 1e-6 * fp4.abs().max()
    assert torch.equal(found["d.weight"], whole.float() * 0.02)
    held = Packs(tmp_path / "file").tensors()
    assert set(summary(held).split(", ")) <= {"bfloat16", "fp8", "nvfp4", "int8"}


@pytest.mark.parametrize("by_threads", [False, True])
def test_rows_of_one_matrix_keep_their_own_scales(tmp_path: Path, by_threads: bool) -> None:
    """q, k and v are cut from one matrix, and the halves of the last modulation swapped."""
    codes, scales, wanted = nvfp4(3 * 96, 256)
    scale = torch.linspace(0.01, 0.05, ROWS)
    values, turned = fp8(scale[:, None])
    given = {
        "double_stream_modulation_img.lin.weight": torch.zeros(4, 4),
        "double_blocks.0.img_attn.qkv.weight": (codes[:, ::2] << 4 | codes[:, 1::2]).byte(),
        "double_blocks.0.img_attn.qkv.weight_scale": swizzled(scales),
        "double_blocks.0.img_attn.qkv.weight_scale_2": torch.tensor(0.37),
        "double_blocks.0.img_attn.qkv.comfy_quant": comfy("nvfp4"),
        "final_layer.adaLN_modulation.1.weight": values,
        "final_layer.adaLN_modulation.1.weight_scale": scale,
        "final_layer.adaLN_modulation.1.comfy_quant": comfy("float8_e4m3fn"),
    }
    path = write(tmp_path / "file", given, prefix="model.diffusion_model.")
    found = loaded(FileCheckpoint(path, "transformer"), by_threads=by_threads)
    for number, name in enumerate(("to_q", "to_k", "to_v")):
        rows = wanted[96 * number : 96 * (number + 1)]
        apart = found[f"transformer_blocks.0.attn.{name}.weight"] - rows
        assert apart.abs().max() <= 1e-6 * wanted.abs().max()
    shift, last = turned.chunk(2)
    assert torch.equal(found["norm_out.linear.weight"], torch.cat([last, shift]))


@pytest.mark.gpu
def test_a_gpu_unpacks_what_the_cpu_does(tmp_path: Path) -> None:
    codes, scales, _ = nvfp4(ROWS, 256)
    values, _ = fp8(SCALES["a row"][:, None])
    given = {
        "b.weight": values,
        "b.weight_scale": SCALES["a row"],
        "b.comfy_quant": comfy("float8_e4m3fn"),
        "c.weight": (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8),
        "c.weight_scale": swizzled(scales),
        "c.weight_scale_2": torch.tensor(0.37),
        "c.comfy_quant": comfy("nvfp4"),
        "d.weight": GOLDEN["int8_64.weight"],
        "d.weight_scale": GOLDEN["int8_64.weight_scale"],
        "d.comfy_quant": comfy("int8_tensorwise", convrot=True, convrot_groupsize=64),
    }
    file = Packs(write(tmp_path / "file", given))
    here, there = loaded(file), loaded(file, by_threads=True, device=torch.device("cuda"))
    for name in ("b.weight", "c.weight"):
        assert torch.equal(here[name], there[name])
    apart = (here["d.weight"] - there["d.weight"]).abs().max()
    assert apart <= 2e-6 * here["d.weight"].abs().max()


def fp8_layer(**more: Tensor) -> Tensors:
    values, _ = fp8(SCALES["one"])
    return {"x.weight": values, "x.weight_scale": SCALES["one"], **more}


REFUSED: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "declared and plain": (
        {"x.weight": weights(), **{f"y.{k[2:]}": v for k, v in fp8_layer().items()}},
        declared(x="float8_e4m3fn", y="float8_e4m3fn"),
        "declares x as quantised, and it is not",
    ),
    "not declared": (
        {**fp8_layer(), "y.weight": fp8_layer()["x.weight"], "y.weight_scale": torch.ones(())},
        declared(x="float8_e4m3fn"),
        "which the file does not declare",
    ),
    "declared as another": (fp8_layer(), declared(x="mxfp8"), "declares x as mxfp8"),
    "declared in two ways": (
        fp8_layer(**{"x.comfy_quant": comfy("nvfp4")}),
        declared(x="float8_e4m3fn"),
        "declares x in two ways",
    ),
    "a scale of nobody": (
        fp8_layer(**{"y.weight_scale": torch.ones(())}),
        {},
        r"holds y\.weight_scale, which belongs to no weights",
    ),
    "a scale of plain weights": (
        {"x.weight": weights(), "x.weight_scale": torch.ones(())},
        {},
        r"holds x\.weight_scale",
    ),
    "a smoothed layer": (
        fp8_layer(**{"x.weight_scale": torch.ones(7)}),
        {},
        "scales of x have shape",
    ),
    "broken declaration": (
        fp8_layer(**{"x.comfy_quant": torch.tensor([123], dtype=torch.uint8)}),
        {},
        "in a broken way",
    ),
    "mxfp8": (
        fp8_layer(**{"x.weight_scale": torch.ones(256, 8, dtype=torch.uint8)}),
        {},
        "mxfp8",
    ),
    "int8 that may be rotated": (
        {"x.weight": weights().to(torch.int8), "x.weight_scale": torch.ones(())},
        {},
        "without saying how",
    ),
    "int8 in odd groups": (
        {
            "x.weight": weights().to(torch.int8),
            "x.weight_scale": torch.ones(()),
            "x.comfy_quant": comfy("int8_tensorwise", convrot=True, convrot_groupsize=48),
        },
        {},
        "rotated in groups of 48",
    ),
    **{
        who: (
            {"x.weight": torch.ones(4, 4, dtype=torch.uint8), name: torch.ones(4)},
            {},
            who,
        )
        for who, name in {
            "bitsandbytes, in 4 bits": "x.weight.absmax",
            "bitsandbytes, in int8": "x.SCB",
            "quanto": "x.weight._data",
            "torchao": "x._weight_qdata",
            "nunchaku": "x.wscales",
            "SDNQ": "x.scale",
            "AWQ": "x.qzeros",
            "asym_w4a8_int8": "x.weight_codebook",
        }.items()
    },
    "MLX": (
        {"x.weight": torch.ones(4, 4, dtype=torch.uint32), "x.scales": torch.ones(4, 1)},
        {},
        "MLX",
    ),
    "bytes of no kind": ({"x.weight": torch.ones(4, 4, dtype=torch.uint8)}, {}, "stored as U8"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, what: str) -> None:
    tensors, metadata, words = REFUSED[what]
    with pytest.raises(ModelError, match=words) as caught:
        unpacked(tmp_path, tensors, **metadata)
    assert caught.value.hint
    assert "\n" not in caught.value.message
