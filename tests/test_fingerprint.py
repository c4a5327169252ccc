"""The hash that tells models apart: sensitive to values, blind to how files are cut."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from klein_cli.errors import ModelError
from klein_cli.fingerprint import fingerprint
from klein_cli.model_files import weight_files


@pytest.fixture
def snapshot(small_snapshot: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(small_snapshot, tmp_path / "copy"))


def weights(snapshot: Path, part: str) -> dict[str, torch.Tensor]:
    return {k: v for path in weight_files(snapshot / part) for k, v in load_file(path).items()}


def rewrite(snapshot: Path, part: str, tensors: dict[str, torch.Tensor]) -> None:
    """The part as one file."""
    files = weight_files(snapshot / part)
    stem = files[0].name.split(".")[0].split("-0")[0]
    for path in (*files, *(snapshot / part).glob("*.index.json")):
        path.unlink()
    save_file(tensors, snapshot / part / f"{stem}.safetensors")


def test_a_copy_has_the_same_and_another_model_another(
    small_snapshot: Path, small_base_snapshot: Path, snapshot: Path
) -> None:
    found = fingerprint(small_snapshot)
    assert len(found) == 32
    assert int(found, 16)
    assert fingerprint(snapshot) == found
    embedded = Path(__file__).parents[1] / "klein_cli" / "tiny"
    assert len({found, fingerprint(embedded)}) == 2
    # Two models of one seed, of which one is distilled, have the same weights.
    assert fingerprint(small_base_snapshot) == found


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_another_training_of_the_same_model_has_another(snapshot: Path, part: str) -> None:
    """Names, sizes and headers are equal, and a hash of those would be too."""
    before = fingerprint(snapshot)
    tensors = weights(snapshot, part)
    rewrite(snapshot, part, tensors)
    assert fingerprint(snapshot) == before, "how a part is cut into files does not count"
    name = sorted(tensors)[len(tensors) // 2]
    flat = tensors[name].flatten().clone()
    flat[len(flat) // 2] += 1
    rewrite(snapshot, part, tensors | {name: flat.view_as(tensors[name])})
    assert fingerprint(snapshot) != before


@pytest.mark.parametrize(
    "name", ["text_encoder/config.json", "tokenizer/tokenizer.json", "vae/config.json"]
)
def test_another_configuration_or_tokenizer_has_another(snapshot: Path, name: str) -> None:
    before = fingerprint(snapshot)
    table = json.loads((snapshot / name).read_text())
    (snapshot / name).write_text(json.dumps(table | {"changed": 1}))
    assert fingerprint(snapshot) != before


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 4) + b"[{}]",
        struct.pack("<Q", 3) + b"{x}",
        struct.pack("<Q", 9) + b'{"a": {}}',
        struct.pack("<Q", 54) + b'{"a": {"dtype": "F32", "shape": [], "data_offsets": 1}}',
        struct.pack("<Q", 55) + b'{"a":{"dtype":"F32","shape":[],"data_offsets":[-99,9]}}',
    ],
    ids=range(8),
)
def test_a_file_that_is_no_safetensors_is_a_complaint(snapshot: Path, data: bytes) -> None:
    (path,) = weight_files(snapshot / "vae")
    path.write_bytes(data)
    with pytest.raises(ModelError, match="cannot be read") as caught:
        fingerprint(snapshot)
    assert "download it again" in caught.value.hint


def test_a_file_that_is_missing_is_a_complaint(snapshot: Path) -> None:
    (snapshot / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        fingerprint(snapshot)
