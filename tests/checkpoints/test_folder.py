"""A model on disk is whole, or each thing that is wrong with it is named, without loading it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from klein_cli.checkpoints.folder import digest, problems, size_on_disk, weight_files
from klein_cli.checkpoints.header import tensors_of
from klein_cli.errors import ModelError

TINY = Path(__file__).parents[2] / "klein_cli" / "tiny"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(small_snapshot: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_snapshot, tmp_path / "model"))


def test_whole_models_have_no_faults(small_snapshot: Path) -> None:
    assert problems(small_snapshot) == []
    assert problems(TINY) == []


@pytest.mark.parametrize(
    "name", ["model_index.json", "vae/config.json", "tokenizer/tokenizer.json", VAE]
)
def test_a_missing_file_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    (fault,) = problems(model)
    assert name.split("/")[0] in fault
    assert str(model) not in fault


@pytest.mark.parametrize("kept", [0, 4, 100, 50_000])
def test_a_file_that_was_cut_short_is_named(model: Path, kept: int) -> None:
    """A disk that was full or a copy that was interrupted: the header promises more."""
    with (model / VAE).open("r+b") as file:
        file.truncate(kept)
    (fault,) = problems(model)
    assert fault.startswith(VAE)


def test_a_file_that_is_too_long_is_named(model: Path) -> None:
    with (model / VAE).open("ab") as file:
        file.write(b"\0" * 8)
    (fault,) = problems(model)
    assert fault.startswith(VAE)


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "{",
        '{"a": 3}',
        '{"a": {"data_offsets": []}}',
        '{"a": {"data_offsets": "x"}}',
        '{"a": {"data_offsets": [0, Infinity]}}',
    ],
)
def test_a_header_that_makes_no_sense_is_named(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(ModelError, match="header"):
        tensors_of(path)


def test_a_header_longer_than_any_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match="cut short"):
        tensors_of(path)


def test_a_tensor_that_only_the_index_knows_is_named(model: Path) -> None:
    """Shards of two downloads mixed up: every file is whole, and yet one tensor is nowhere."""
    part = model / "transformer"
    tensors = load_file(part / "diffusion_pytorch_model.safetensors")
    names = sorted(tensors)
    (part / "diffusion_pytorch_model.safetensors").unlink()
    save_file({name: tensors[name] for name in names[1:]}, part / "one.safetensors")
    index = {"weight_map": dict.fromkeys(names, "one.safetensors")}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (fault,) = problems(model)
    assert names[0] in fault


def both_layouts(folder: Path, stem: str) -> Path:
    """One file of weights, and beside it an index of shards that are gone."""
    path = folder / f"{stem}.safetensors"
    where = dict.fromkeys(load_file(path), "old.safetensors")
    index = {"metadata": {}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return path


def test_an_index_left_beside_a_text_encoder_in_one_file_does_not_count(model: Path) -> None:
    """A fine-tune saved over a folder of shards: transformers loads the file, and so do we."""
    path = both_layouts(model / "text_encoder", "model")
    assert weight_files(model / "text_encoder") == [path]
    assert problems(model) == []


def test_an_index_beside_a_transformer_in_one_file_counts(model: Path) -> None:
    """diffusers loads what the index names."""
    both_layouts(model / "transformer", "diffusion_pytorch_model")
    (fault,) = problems(model)
    assert fault.startswith("transformer/old.safetensors is missing")


def test_the_libraries_choose_so_themselves(model: Path) -> None:
    """Known by whether they miss the shards."""
    from diffusers import Flux2Transformer2DModel
    from transformers import Qwen3ForCausalLM

    encoder: Any = Qwen3ForCausalLM
    both_layouts(model / "text_encoder", "model")
    assert encoder.from_pretrained(model / "text_encoder") is not None
    both_layouts(model / "transformer", "diffusion_pytorch_model")
    with pytest.raises(OSError, match=r"old\.safetensors"):
        Flux2Transformer2DModel.from_pretrained(model / "transformer")


def test_several_faults_are_all_named(model: Path) -> None:
    (model / "vae" / "config.json").write_text("{")
    (model / "tokenizer" / "tokenizer_config.json").unlink()
    shutil.rmtree(model / "transformer")
    found = "\n".join(problems(model))
    for name in ("vae/config.json", "tokenizer_config.json", "transformer/config.json"):
        assert name in found


@pytest.mark.parametrize(
    "name", ["model_index.json", "vae/config.json", "tokenizer/tokenizer.json"]
)
@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"a": "\xff"}', b"9" * 5000], ids=range(3))
def test_json_that_python_cannot_read_is_a_fault(model: Path, name: str, data: bytes) -> None:
    """Lists too deep, broken UTF-8, a number too long: three kinds of errors of the parser."""
    (model / name).write_bytes(data)
    (fault,) = problems(model)
    assert fault.startswith(f"{name} cannot be read")


def test_digests_are_those_of_sha256sum_and_of_git(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"hello\n")
    heard: list[int] = []
    assert digest(path, on_bytes=heard.append) == hashlib.sha256(b"hello\n").hexdigest()
    assert sum(heard) == 6
    # As printed by: echo hello | git hash-object --stdin
    assert digest(path, git=True) == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_sizes_follow_links(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"12345")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a").symlink_to(tmp_path / "blob")
    assert size_on_disk(tmp_path / "snapshot") == 5
    assert size_on_disk(tmp_path / "nowhere") == 0


@pytest.mark.process
def test_looking_needs_no_torch() -> None:
    script = (
        "import sys; from pathlib import Path; from klein_cli.checkpoints.folder import problems;"
        "print(problems(Path(sys.argv[1])), 'torch' in sys.modules, 'safetensors' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, TINY], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["[]", "False", "False"]
