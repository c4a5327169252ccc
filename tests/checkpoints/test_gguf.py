"""GGUF: unpacked as the reference unpacks it, bit for bit; a hostile header is one complaint."""

from __future__ import annotations

import importlib.util
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from loaded_files import loaded
from model_files import OTHER_NAMES, Tensors, read_part, write_gguf
from numpy.typing import NDArray

from klein_cli.checkpoints.gguf import PACKED, RARE, read_gguf
from klein_cli.checkpoints.single_file import FileCheckpoint
from klein_cli.checkpoints.source import PARTS
from klein_cli.errors import ModelError

ROWS, COLUMNS = 40, 512
NAME = "double_stream_modulation_img.lin.weight"
OFFICIAL = "double_stream_modulation_img.linear.weight"


def random_blocks(kind: gguf.GGMLQuantizationType, seed: int = 0) -> NDArray[numpy.uint8]:
    """Rows of random bytes, but for the numbers of 16 bits among them, which are finite."""
    drawn = numpy.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = drawn.integers(0, 256, (ROWS * COLUMNS // block, size), dtype=numpy.uint8)
    for at in HALVES[kind.name]:
        halves = drawn.normal(0, 0.1, len(data)).astype(numpy.float16)
        data[:, at : at + 2] = halves.view(numpy.uint8).reshape(-1, 2)
    if kind.name == "MXFP4":
        data[:, 0] = drawn.integers(120, 135, len(data))  # an exponent
    return data.reshape(ROWS, -1)


HALVES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ3_S", "IQ2_S"), (0,)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "IQ1_M": (),
    "MXFP4": (),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}


@pytest.mark.parametrize("kind", [each.name for each in (PACKED | RARE).values()])
def test_it_is_unpacked_as_the_reference_does(tmp_path: Path, kind: str) -> None:
    packed = random_blocks(gguf.GGMLQuantizationType[kind])
    path = write_gguf(tmp_path / "file", {NAME: (packed, gguf.GGMLQuantizationType[kind])})
    wanted = torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind]))
    checkpoint = FileCheckpoint(path, "transformer")
    assert checkpoint.tensors()[OFFICIAL].shape == (ROWS, COLUMNS)
    for by_threads in (False, True):
        found = loaded(checkpoint, by_threads=by_threads)[OFFICIAL]
        assert torch.equal(found.nan_to_num(), wanted.nan_to_num())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [each.name for each in PACKED.values()])
def test_a_gpu_unpacks_what_the_cpu_does(tmp_path: Path, kind: str) -> None:
    packed = random_blocks(gguf.GGMLQuantizationType[kind])
    path = write_gguf(tmp_path / "file", {NAME: (packed, gguf.GGMLQuantizationType[kind])})
    checkpoint = FileCheckpoint(path, "transformer")
    there = loaded(checkpoint, by_threads=True, device=torch.device("cuda"))
    assert torch.equal(loaded(checkpoint)[OFFICIAL], there[OFFICIAL])


def test_block_lengths_are_the_references() -> None:
    for number, kind in (PACKED | RARE).items():
        known = gguf.GGMLQuantizationType(number)
        assert (known.name, *gguf.GGML_QUANT_SIZES[known]) == (kind.name, kind.block, kind.size)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_part_in_floats(small_snapshot: Path, tmp_path: Path, part: str, kind: str) -> None:
    official = read_part(small_snapshot / part)
    official.pop("bn.num_batches_tracked", None)
    given = OTHER_NAMES[part](official)
    packed = {
        name: (gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType[kind]), kind)
        for name, tensor in given.items()
    }
    architecture = "qwen3" if part == "text_encoder" else "flux"
    path = write_gguf(tmp_path / "file", packed, {"general.architecture": architecture})
    found = loaded(FileCheckpoint(path, part))
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    assert found.keys() == official.keys()
    for name, tensor in official.items():
        assert torch.equal(found[name], tensor.to(dtype).float()), name


def test_q_k_and_v_are_cut_and_halves_swapped_before_they_are_unpacked(
    medium_transformer: Tensors, tmp_path: Path
) -> None:
    given = OTHER_NAMES["transformer"](medium_transformer)
    q8 = gguf.GGMLQuantizationType.Q8_0
    packed = {
        name: (gguf.quants.quantize(tensor.numpy(), q8), q8)
        if tensor.ndim == 2
        else (tensor.numpy(), "F32")
        for name, tensor in given.items()
    }
    path = write_gguf(tmp_path / "file", packed, {"general.architecture": "flux"})
    found = loaded(FileCheckpoint(path, "transformer"))
    for name, tensor in medium_transformer.items():
        most = 0.006 * tensor.abs().amax()  # half a step, and the rounding of its scale
        assert (found[name] - tensor).abs().max() <= most, name


@pytest.fixture(scope="module")
def medium_transformer(small_snapshot: Path) -> Tensors:
    """The small transformer, each matrix around a value of its own."""
    official = read_part(small_snapshot / "transformer")
    return {
        name: tensor + number if tensor.ndim == 2 else tensor
        for number, (name, tensor) in enumerate(official.items())
    }


def test_settings_that_shapes_do_not_tell_come_from_the_file(
    small_snapshot: Path, tmp_path: Path
) -> None:
    given = OTHER_NAMES["text_encoder"](read_part(small_snapshot / "text_encoder"))
    packed = {name: (tensor.numpy(), "F32") for name, tensor in given.items()}
    said = {
        "general.architecture": "qwen3",
        "qwen3.rope.freq_base": 5e6,
        "qwen3.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.tokens": ["a", "b"] * 100,
    }
    config = FileCheckpoint(write_gguf(tmp_path / "file", packed, said), "text_encoder").config()
    assert (config["rope_theta"], config["rms_norm_eps"]) == (5e6, 1e-5)
    said["general.architecture"] = "qwen3vl"
    with pytest.raises(ModelError, match="qwen3vl"):
        FileCheckpoint(write_gguf(tmp_path / "vl", packed, said), "text_encoder").config()


def test_a_rare_type_needs_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is loaded, with what to install."""
    kind = gguf.GGMLQuantizationType.IQ2_XS
    path = write_gguf(tmp_path / "file", {NAME: (random_blocks(kind), kind)})
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name)
    )
    with pytest.raises(ModelError, match="IQ2_XS") as caught:
        FileCheckpoint(path, "transformer").tensors()
    assert "klein-cli[gguf]" in caught.value.hint


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def line(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    sides = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sides + struct.pack("<IQ", kind, offset)


def strings(count: int) -> bytes:
    return text("k") + struct.pack("<IIQ", 9, 8, count)


HOSTILE: dict[str, bytes] = {
    "nothing": b"GGUF",
    "old": header(version=1),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 1, 1),
    "many tensors": header(tensors=2**63),
    "many keys": header(keys=10**9),
    "a long name": header(keys=1) + struct.pack("<Q", 2**62),
    "a name beyond the end": header(keys=1) + struct.pack("<Q", 100) + b"abc",
    "no text": header(keys=1) + struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<IB", 0, 1),
    "a type of value that is none": header(keys=1) + text("k") + struct.pack("<I", 99),
    "a long array": header(keys=1) + text("k") + struct.pack("<IIQ", 9, 4, 2**61),
    "many strings": header(keys=1) + strings(2**40),
    "arrays of arrays": header(keys=1) + text("k") + struct.pack("<IIQ", 9, 9, 1) * 1000,
    "many dimensions": header(tensors=1) + line("a", (1,) * 9, 0, 0),
    "a huge shape": header(tensors=1) + line("a", (2**63, 2**63), 0, 0),
    "half a block": header(tensors=1) + line("a", (100, 1), 12, 0) + bytes(200),
    "a type that nobody knows": header(tensors=1) + line("a", (32,), 77, 0),
    "bytes beyond the end": header(tensors=1) + line("a", (1024,), 0, 0),
    "an offset beyond the end": header(tensors=1) + line("a", (1,), 0, 2**62),
    "overlap": header(tensors=2) + line("a", (8,), 0, 0) + line("b", (8,), 0, 4) + bytes(200),
    "twice": header(tensors=2) + line("a", (8,), 0, 0) + line("a", (8,), 0, 32) + bytes(200),
    "an alignment of none": header(tensors=1, keys=1)
    + text("general.alignment")
    + struct.pack("<II", 4, 0)
    + line("a", (1,), 0, 0)
    + bytes(200),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_is_one_complaint(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_bytes(HOSTILE[what])
    with pytest.raises(ModelError) as caught:
        read_gguf(tmp_path / "file")
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_file_of_very_many_strings_is_refused_at_once(tmp_path: Path) -> None:
    """Each takes eight bytes and a step of Python: a file of gigabytes would take minutes."""
    with (tmp_path / "file").open("wb") as file:
        file.write(header(keys=1) + strings(3_000_000))
        file.truncate(32 * 1024 * 1024)
    with pytest.raises(ModelError, match="broken header"):
        read_gguf(tmp_path / "file")


def test_a_file_that_is_cut_anywhere_is_one_complaint(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    said = {"general.architecture": "flux", "k": [1, 2, 3], "names": ["a", "b"]}
    path = write_gguf(tmp_path / "file", {NAME: (random_blocks(kind), kind)}, said)
    whole = path.read_bytes()
    for length in range(4, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_gguf(path)


@pytest.mark.parametrize("change", [lambda b, r: b ^ (1 << r % 8), lambda b, r: 255])
def test_flipped_bits_of_a_header_are_a_complaint_or_another_header(
    tmp_path: Path, change: Callable[[int, int], int]
) -> None:
    """Whatever it says, no other error, and at once."""
    kind = gguf.GGMLQuantizationType.Q4_K
    path = write_gguf(tmp_path / "file", {NAME: (random_blocks(kind), kind)}, {"a": "b", "c": 1})
    whole = bytearray(path.read_bytes())
    drawn = numpy.random.default_rng(1)
    for _ in range(100):
        damaged = bytearray(whole)
        for at in drawn.integers(4, 200, 2):
            damaged[at] = change(damaged[at], int(at))
        path.write_bytes(damaged)
        try:
            read_gguf(path)
        except ModelError:
            continue


@pytest.mark.own_process
def test_a_hostile_header_takes_no_memory(tmp_path: Path) -> None:
    """200 bytes that promise 2**40 strings took 2.8 GB and 20 seconds of another reader."""
    resource: Any = pytest.importorskip("resource")
    for number, what in enumerate(HOSTILE.values()):
        (tmp_path / f"{number}").write_bytes(what)
        with pytest.raises(ModelError):
            read_gguf(tmp_path / f"{number}")
    (tmp_path / "long").write_bytes(header(keys=1) + strings(1_999_999) + bytes(8 * 1_000_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError):
        read_gguf(tmp_path / "long")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 50_000 * (1024 if sys.platform == "darwin" else 1)
