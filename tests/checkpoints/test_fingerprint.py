"""The hash that tells models apart: sensitive to values, blind to how files are cut."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import OTHER_NAMES, write
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from klein_cli.checkpoints.fingerprint import fingerprint, part_files
from klein_cli.checkpoints.folder import weight_files
from klein_cli.checkpoints.resolve import resolve
from klein_cli.errors import ModelError


@pytest.fixture
def snapshot(small_snapshot: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(small_snapshot, tmp_path / "copy"))


def of(root: Path) -> str:
    return fingerprint(resolve(str(root)))


def weights(snapshot: Path, part: str) -> dict[str, torch.Tensor]:
    return {k: v for path in weight_files(snapshot / part) for k, v in load_file(path).items()}


def rewrite(snapshot: Path, part: str, tensors: dict[str, torch.Tensor]) -> None:
    """The part as one file."""
    files = weight_files(snapshot / part)
    stem = files[0].name.split(".")[0].split("-0")[0]
    for path in (*files, *(snapshot / part).glob("*.index.json")):
        path.unlink()
    save_file(tensors, snapshot / part / f"{stem}.safetensors")


def headed(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def test_a_copy_has_the_same_and_another_model_another(
    small_snapshot: Path, small_base_snapshot: Path, snapshot: Path
) -> None:
    found = of(small_snapshot)
    assert len(found) == 32
    assert int(found, 16)
    assert of(snapshot) == found
    embedded = Path(__file__).parents[2] / "klein_cli" / "tiny"
    assert len({found, of(embedded)}) == 2
    # Two models of one seed, of which one is distilled, have the same weights.
    assert of(small_base_snapshot) == found


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_another_training_of_the_same_model_has_another(snapshot: Path, part: str) -> None:
    """Names, sizes and headers are equal, and a hash of those would be too."""
    before = of(snapshot)
    tensors = weights(snapshot, part)
    rewrite(snapshot, part, tensors)
    assert of(snapshot) == before, "how a part is cut into files does not count"
    name = sorted(tensors)[len(tensors) // 2]
    flat = tensors[name].flatten().clone()
    flat[len(flat) // 2] += 1
    rewrite(snapshot, part, tensors | {name: flat.view_as(tensors[name])})
    assert of(snapshot) != before


def test_it_is_what_it_always_was(small_snapshot: Path) -> None:
    """Images hold it: computed another way, all of them would be of another model."""
    whole = hashlib.sha256()
    for name in (
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
        "transformer/config.json",
        "vae/config.json",
    ):
        whole.update(name.encode() + b"\0" + (small_snapshot / name).read_bytes() + b"\0")
    for part in ("text_encoder", "transformer", "vae"):
        lines = []
        for path in weight_files(small_snapshot / part):
            with safe_open(path, framework="np") as file:
                lines += [_line(name, file) for name in file.keys()]  # noqa: SIM118 (not a dict)
        for line in sorted(lines):
            whole.update(part.encode() + b"\0" + line)
    assert of(small_snapshot) == whole.hexdigest()[:32]


def _line(name: str, file: Any) -> bytes:
    found = file.get_slice(name)
    values = file.get_tensor(name).tobytes()
    size = min(1024, len(values))
    start = (len(values) - size) // 2
    sample = hashlib.sha256(values[start : start + size]).hexdigest()
    return f"{name}\0{found.get_dtype()}\0{found.get_shape()}\0{sample}\n".encode()


@pytest.mark.parametrize(
    "name", ["text_encoder/config.json", "tokenizer/tokenizer.json", "vae/config.json"]
)
def test_another_configuration_or_tokenizer_has_another(snapshot: Path, name: str) -> None:
    before = of(snapshot)
    table = json.loads((snapshot / name).read_text())
    (snapshot / name).write_text(json.dumps(table | {"changed": 1}))
    assert of(snapshot) != before


def test_a_scale_is_part_of_the_weights(small_snapshot: Path, tmp_path: Path) -> None:
    """Of fp8 files that differ in their scales alone, one is half of the other."""
    tensors = OTHER_NAMES["transformer"](weights(small_snapshot, "transformer"))
    name = "single_blocks.0.linear1.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    found = set()
    for scale in (1.0, 0.5):
        given = tensors | {"single_blocks.0.linear1.weight_scale": torch.tensor(scale)}
        path = write(tmp_path / "file.safetensors", given)
        snapshot = resolve(str(small_snapshot), parts={"transformer": str(path)})
        (part,) = part_files(snapshot)
        assert (part.part, part.name) == ("transformer", "file.safetensors")
        found |= {part.weights, fingerprint(snapshot)}
    assert len(found) == 4


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 4) + b"[{}]",
        struct.pack("<Q", 3) + b"{x}",
        struct.pack("<Q", 9) + b'{"a": {}}',
        headed(b'{"a": {"dtype": "F32", "shape": [], "data_offsets": 1}}'),
        headed(b'{"a":{"dtype":"F32","shape":[],"data_offsets":[-99,9]}}'),
        headed(b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,0.0]}}'),
        headed(b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,Infinity]}}'),
        headed(b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,1%s]}}' % (b"0" * 400)),
        headed(b'{"\\ud800":{"dtype":"F32","shape":[],"data_offsets":[0,0]}}'),
        headed(b"[" * 200_000),
    ],
    ids=range(13),
)
def test_a_file_that_is_no_safetensors_is_a_complaint(snapshot: Path, data: bytes) -> None:
    (path,) = weight_files(snapshot / "vae")
    path.write_bytes(data)
    with pytest.raises(ModelError, match=path.name) as caught:
        of(snapshot)
    assert "download it again" in caught.value.hint


def test_a_file_that_was_cut_short_has_none(snapshot: Path) -> None:
    """The samples lie in the middle: a file without its end had a hash all the same."""
    (path,) = weight_files(snapshot / "vae")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(ModelError, match=path.name):
        of(snapshot)


def test_a_file_that_is_missing_is_a_complaint(snapshot: Path) -> None:
    (snapshot / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        of(snapshot)
