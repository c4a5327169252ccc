"""Weights that are put again with other changes: in their places, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from klein_cli.checkpoints.folder import FolderCheckpoint
from klein_cli.checkpoints.load import Change, init_on_meta
from klein_cli.checkpoints.reader import Reader
from klein_cli.device.device import Cpu
from klein_cli.errors import ModelError
from klein_cli.models.flux2 import Flux2Transformer
from klein_cli.optimize.backend import Backend
from klein_cli.optimize.linears import pack
from klein_cli.optimize.part import Part, Target
from klein_cli.optimize.quantize.fp8 import quantise
from tests.fixtures.adapters import base_weights
from tests.fixtures.small_models import FLUX2

CPU = torch.device("cpu")
STEPS: dict[str, tuple[Callable[..., None], ...]] = {
    "as it is": (),
    "packed": (pack,),
    "fp8": (quantise,),
}
Q, OUT = "transformer_blocks.0.attn.to_q.weight", "proj_out.weight"


def plus(amount: float) -> Change:
    def change(first: int, rows: Tensor) -> Tensor:
        assert rows.dtype == torch.float32
        numbers = torch.arange(first, first + len(rows)).view(-1, *[1] * (rows.ndim - 1))
        return rows + amount * (1 + numbers % 3)

    return change


CHANGES: list[Mapping[str, Change]] = [
    {Q: plus(0.3), "transformer_blocks.0.attn.norm_q.weight": plus(0.1)},
    {},
    {Q: plus(-0.2), OUT: plus(0.5)},
    {OUT: plus(0.25)},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(base_weights(), tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture(params=[True, False], ids=["by threads", "at once"])
def target(request: pytest.FixtureRequest) -> Target:
    device = Streaming("cpu") if request.param else Cpu("cpu")
    return Target(device=device, dtype=torch.bfloat16)


class Streaming(Cpu):
    """A CPU whose weights come as a GPU's do."""

    streams = True


def load(folder: Path, target: Target, changes: Mapping[str, Change]) -> Part[nn.Module]:
    with init_on_meta():
        model = Flux2Transformer(FLUX2)
    with Reader(CPU, 1000) if target.device.streams else nullcontext() as reader:
        target = replace(target, reader=reader, changes={"transformer": changes})
        return Part.load("transformer", model, FolderCheckpoint(folder), target)


def state(part: Part[nn.Module]) -> dict[str, Tensor]:
    with part.ready() as module:
        return {name: tensor.clone().float() for name, tensor in module.state_dict().items()}


def places(part: Part[nn.Module]) -> dict[str, int]:
    with part.ready() as module:
        return {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("held", STEPS)
def test_tensors_are_put_again_in_place(folder: Path, target: Target, held: str) -> None:
    """A CUDA graph reads the memory that it was recorded with. What one set of changes touched and
    the next does not is the file's own again, packed or quantised as it was.
    """
    target = replace(target, backend=Backend(steps={"transformer": STEPS[held]}))
    before = (folder / "model.safetensors").read_bytes()
    part = load(folder, target, CHANGES[0])
    where = places(part)
    for changes in [*CHANGES, *reversed(CHANGES)]:
        part.reload(changes, target.device)
        wanted = state(load(folder, target, changes))
        found = state(part)
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
        assert places(part) == where
    assert (folder / "model.safetensors").read_bytes() == before, "a mapped file was written to"


def test_a_file_that_was_replaced_meanwhile_is_not_mixed_with_what_was_loaded(
    folder: Path, target: Target
) -> None:
    """The tensors that come again were another model's, and the images of neither."""
    part = load(folder, target, CHANGES[0])
    other = {name: -tensor for name, tensor in base_weights().items()}
    save_file(other, folder / "other")
    (folder / "other").replace(folder / "model.safetensors")
    with pytest.raises(ModelError, match="has changed since it was looked at"):
        part.reload({}, target.device)


def test_changed_weights_are_rounded_once_and_quantised_as_they_are(
    folder: Path, target: Target
) -> None:
    """Not the weights of the file and then those of the change: fp8 would lose most of it."""
    fp8 = replace(target, backend=Backend(steps={"transformer": (quantise,)}))
    small = {Q: plus(1 / 64)}
    found = state(load(folder, fp8, small))
    merged = base_weights()
    merged[Q] = small[Q](0, merged[Q].float()).bfloat16()
    save_file(merged, folder / "model.safetensors")
    wanted = state(load(folder, fp8, {}))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_change_that_fails_leaves_nothing_half_done_for_the_next(
    folder: Path, target: Target
) -> None:
    def broken(first: int, rows: Tensor) -> Tensor:
        raise ModelError("a.safetensors holds numbers that are not finite", "use another")

    part = load(folder, target, {})
    wanted = state(part)
    for _ in range(2):
        with pytest.raises(ModelError, match="not finite"):
            part.reload({Q: plus(0.3), OUT: broken}, target.device)
    assert not part.failed
    part.reload({}, target.device)
    found = state(part)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_within_inference_mode(folder: Path, target: Target) -> None:
    """As a pipeline switches, between two batches; and then outside of it."""
    part = load(folder, target, {})
    with torch.inference_mode():
        part.reload(CHANGES[0], target.device)
    changed = state(part)
    part.reload({}, target.device)
    assert not torch.equal(changed[Q], state(part)[Q])
    fresh = partial(load, folder, target)
    assert torch.equal(changed[Q], state(fresh(CHANGES[0]))[Q])
