"""Weights that cannot be trusted, each fault made for real in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from klein_cli.checkpoints.folder import FolderCheckpoint, weight_files
from klein_cli.checkpoints.load import init_on_meta, load_weights
from klein_cli.checkpoints.reader import Reader
from klein_cli.checkpoints.source import config_of
from klein_cli.errors import ModelError

CPU = torch.device("cpu")


class Part(nn.Module):
    """A parameter, a statistic and a counter, as the VAE has them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("variance", torch.ones(3))
        self.register_buffer("count", torch.tensor(0))


def tensors() -> dict[str, Tensor]:
    return {
        "linear.weight": torch.arange(6.0).view(2, 3),
        "linear.bias": torch.tensor([1 / 3, 2 / 3]),
        "variance": torch.tensor([1 / 3, 1.0, 2.0]),
        "count": torch.tensor(7),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture(params=["at once", "by threads"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every fault is found by both ways of reading, the CPU's and the GPU's."""
    monkeypatch.setattr(request.module, "BY_THREADS", request.param == "by threads")
    return str(request.param)


BY_THREADS = False


def load(folder: Path, **options: object) -> tuple[Part, tuple[str, ...]]:
    with init_on_meta():
        part = Part()
    options = {"dtype": torch.float32, **options}
    with Reader(CPU) if BY_THREADS else nullcontext() as reader:
        arrival, skipped = load_weights(
            part,
            FolderCheckpoint(folder),
            device=CPU,
            reader=reader,
            **options,  # type: ignore[arg-type]
        )
    if arrival is not None:
        arrival.wait()
    return part, skipped


def shard(folder: Path, where: dict[str, str]) -> None:
    """Write `tensors()` to the files that `where` names, and the index."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    for file in set(where.values()):
        held = {name: tensors()[name] for name in where if where[name] == file}
        save_file(held, folder / Path(file).name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


TWO = {
    "linear.weight": "model-00001-of-00002.safetensors",
    "linear.bias": "model-00002-of-00002.safetensors",
    "variance": "model-00002-of-00002.safetensors",
    "count": "model-00001-of-00002.safetensors",
}


@pytest.mark.parametrize("sharded", [False, True])
def test_every_tensor_arrives(folder: Path, sharded: bool) -> None:
    if sharded:
        shard(folder, TWO)
    part, skipped = load(folder)
    assert skipped == ()
    for name, tensor in part.state_dict().items():
        assert torch.equal(tensor, tensors()[name]), name
    assert not part.training
    assert not any(parameter.requires_grad for parameter in part.parameters())


def test_parameters_are_cast_and_statistics_are_not(folder: Path) -> None:
    part, _ = load(folder, dtype=torch.bfloat16)
    assert part.linear.bias.dtype == torch.bfloat16
    assert torch.equal(part.get_buffer("variance"), tensors()["variance"])
    assert part.get_buffer("count").dtype == torch.int64


def test_statistics_stored_in_bfloat16_become_float32(folder: Path) -> None:
    narrow = {name: t.bfloat16() if t.ndim else t for name, t in tensors().items()}
    save_file(narrow, folder / "model.safetensors")
    part, _ = load(folder, dtype=torch.bfloat16)
    assert part.get_buffer("variance").dtype == torch.float32


def test_a_prefix_and_unread_tensors(folder: Path) -> None:
    stored = {f"model.{name}": tensor for name, tensor in tensors().items()}
    save_file({**stored, "head": torch.zeros(9)}, folder / "model.safetensors")
    part, skipped = load(folder, prefix="model.", skip=lambda name: name == "head")
    assert skipped == ("head",)
    assert torch.equal(part.linear.weight, tensors()["linear.weight"])


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    changed = tensors()
    change(changed)
    save_file(changed, folder / "model.safetensors")


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(folder)
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint


def test_a_missing_tensor_is_named(folder: Path) -> None:
    rewrite(folder, lambda held: held.pop("linear.bias"))
    refused(folder, "lacks linear.bias")


def test_an_extra_tensor_is_named(folder: Path) -> None:
    rewrite(folder, lambda held: held.update({"linear.more": torch.ones(1)}))
    refused(folder, "linear.more", "no place")
    rewrite(folder, lambda held: held.update({"linear.weight_scale": torch.ones(1)}))
    refused(folder, "linear.weight_scale", "belongs to no weights")


def test_a_misshapen_tensor_is_named(folder: Path) -> None:
    """One of these would broadcast, if nobody looked."""
    rewrite(folder, lambda held: held.update({"variance": torch.ones(1)}))
    refused(folder, "variance has shape (1,), not (3,)")


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8], ids=str)
def test_quantised_weights_are_refused(folder: Path, kind: torch.dtype) -> None:
    """Without their scales they would be noise."""
    rewrite(folder, lambda held: held.update({"linear.weight": torch.ones(2, 3).to(kind)}))
    refused(folder, "linear.weight is stored as")


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_a_truncated_file_is_named(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, "model.safetensors")


def test_a_file_that_is_no_safetensors_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>Not found</html>" * 40)
    refused(folder, "model.safetensors")


def test_an_absent_shard_is_named(folder: Path) -> None:
    shard(folder, TWO)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "model-00002-of-00002.safetensors is missing")


@pytest.mark.parametrize("way", ["../{}", "/{}", "sub/{}", "..\\{}", "..", ""])
def test_an_index_does_not_lead_out_of_its_folder(folder: Path, way: str) -> None:
    outside = way.format("model-00002-of-00002.safetensors")
    save_file(tensors(), folder.parent / "model-00002-of-00002.safetensors")
    index = {"weight_map": {**TWO, "variance": outside}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "outside its folder")


def test_an_index_of_names_that_no_file_can_have_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {**TWO, "variance": "x" * 400}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "model.safetensors.index.json names an invalid file")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_named(folder: Path, text: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    refused(folder, "model.safetensors.index.json")


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin") as caught:
        weight_files(tmp_path)
    assert "pickle" in caught.value.hint


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no weights"):
        weight_files(tmp_path)


def test_nothing_is_left_without_memory(folder: Path) -> None:
    """A buffer outside the state dict gets its values from nowhere: that is a bug, not a file."""
    with init_on_meta():
        part = Part()
        part.register_buffer("table", torch.ones(4), persistent=False)
    with pytest.raises(RuntimeError, match="no values for table"):
        load_weights(part, FolderCheckpoint(folder), device=CPU, dtype=torch.float32)


def test_a_file_that_shrinks_after_its_header_was_read_is_named(folder: Path) -> None:
    with init_on_meta():
        part = Part()
    path = folder / "model.safetensors"
    reader = Reader(CPU)
    checkpoint = FolderCheckpoint(folder)
    arrival, _ = load_weights(part, checkpoint, device=CPU, dtype=torch.float32, reader=reader)
    path.write_bytes(path.read_bytes()[:-4])
    with reader:
        pass
    assert arrival is not None
    with pytest.raises(EOFError, match=r"model\.safetensors ends too early"):
        arrival.wait()


def test_modules_are_made_without_memory_or_values() -> None:
    with init_on_meta():
        part = Part()
    assert all(tensor.is_meta for tensor in part.state_dict().values())
    values = nn.Linear(3, 2).weight
    assert not values.is_meta
    assert values.any()


def test_a_config_must_name_its_class(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ModelError, match="is missing"):
        config_of(FolderCheckpoint(tmp_path), "_class_name", "Part")
    path.write_text('{"_class_name": "Other"}')
    with pytest.raises(ModelError, match="describes Other, not Part"):
        config_of(FolderCheckpoint(tmp_path), "_class_name", "Part")
    path.write_text('{"_class_name": "Part", "size": 3}')
    assert config_of(FolderCheckpoint(tmp_path), "_class_name", "Part")["size"] == 3


def test_rows_are_changed_before_they_are_rounded(folder: Path) -> None:
    """Rounded first, a third of a bfloat16's step added to a weight came to nothing."""
    seen: dict[int, Tensor] = {}

    def change(first: int, rows: Tensor) -> Tensor:
        assert rows.dtype == torch.float32
        seen[first] = rows.clone()
        return rows.add_(1 / 3)

    weight = tensors()["linear.weight"].bfloat16()
    save_file(tensors() | {"linear.weight": weight}, folder / "model.safetensors")
    part, _ = load(folder, dtype=torch.bfloat16, changes={"linear.weight": change})
    assert torch.equal(part.linear.weight, (weight.float() + 1 / 3).bfloat16())
    assert torch.equal(torch.cat([seen[first] for first in sorted(seen)]), weight.float())
    assert torch.equal(part.linear.bias, tensors()["linear.bias"].bfloat16())


def test_a_change_that_changes_nothing_leaves_every_bit(folder: Path) -> None:
    before, _ = load(folder, dtype=torch.bfloat16)
    after, _ = load(
        folder,
        dtype=torch.bfloat16,
        changes=dict.fromkeys(("linear.weight", "linear.bias"), lambda first, rows: rows + 0.0),
    )
    assert torch.equal(after.linear.weight, before.linear.weight)
    assert torch.equal(after.linear.bias, before.linear.bias)
