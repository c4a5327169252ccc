"""A part's weights: waited for once, whole or never, and only by its door."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from klein_cli.checkpoints.folder import FolderCheckpoint
from klein_cli.checkpoints.load import init_on_meta
from klein_cli.checkpoints.reader import Reader, ReadHandle
from klein_cli.device.device import device_for
from klein_cli.errors import ModelError
from klein_cli.models.layers import ParallelLinears
from klein_cli.optimize.backend import PLAIN, Backend
from klein_cli.optimize.linears import pack
from klein_cli.optimize.part import Part, Target
from klein_cli.optimize.quantize.fp8 import Fp8Linear, scaled

CPU = torch.device("cpu")


class Model(nn.Module):
    """Layers that can be packed, one that can be quantised, and one that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(32, 16, bias=False)
        self.to_k = nn.Linear(32, 48, bias=False)
        self.out = nn.Linear(32, 16)
        self.qk = ParallelLinears(self.to_q, self.to_k)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((*self.qk(x), self.out(x)), dim=-1)


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn_like(tensor) for name, tensor in Model().state_dict().items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path


def load(folder: Path, backend: Backend = PLAIN, *, reader: Reader | None = None) -> Part[Model]:
    with init_on_meta():
        model = Model()
    target = Target(device=device_for("cpu"), dtype=torch.float32, backend=backend, reader=reader)
    return Part.load("transformer", model, FolderCheckpoint(folder), target)


@pytest.mark.parametrize("piece", [1, 130, 10**6])
@pytest.mark.parametrize("by_threads", [True, False])
def test_weights_take_their_places_in_whatever_holds_them(
    folder: Path, by_threads: bool, piece: int
) -> None:
    """Packed as they arrive, row by row: the same numbers as packed afterwards."""
    backend = Backend(steps={"transformer": (pack,)})
    if by_threads:
        with Reader(CPU, piece) as reader:
            part = load(folder, backend, reader=reader)
    else:
        part = load(folder, backend)
    whole = Model()
    whole.load_state_dict(weights())
    pack(whole)
    x = torch.randn(3, 32)
    with part.ready() as model:
        assert torch.equal(model(x), whole(x))
        assert not hasattr(model, "to_q"), "weights would be held twice"


def test_a_quantised_weight_takes_rows_stored_in_any_dtype(tmp_path: Path) -> None:
    """Rounded to the model's dtype first, as it would be if it were quantised afterwards."""

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(32, 48, bias=False)

    def quantise(model: nn.Module) -> None:
        layer = model.get_submodule("out")
        assert isinstance(layer, nn.Linear)
        model.add_module("out", Fp8Linear({"out.weight": layer.weight}, scaled))

    weight = torch.randn(48, 32)
    save_file({"out.weight": weight}, tmp_path / "model.safetensors")
    with init_on_meta():
        alone = Alone()
    with Reader(CPU, 3 * 4 * 32) as reader:
        target = Target(
            device=device_for("cpu"),
            dtype=torch.bfloat16,
            backend=Backend(steps={"transformer": (quantise,)}),
            reader=reader,
        )
        part = Part.load("transformer", alone, FolderCheckpoint(tmp_path), target)
    wanted = Fp8Linear({"out.weight": weight.bfloat16()}, scaled)
    with part.ready() as model:
        found = model.get_submodule("out")
        for name, tensor in wanted.state_dict().items():
            assert torch.equal(found.get_buffer(name).float(), tensor.float()), name


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), ModelError("it cannot be", "do without")],
    ids=lambda error: type(error).__name__,
)
def test_a_module_that_cannot_be_made_is_never_whole(error: Exception) -> None:
    """A second try must not compute with weights that are not there."""
    arrival = ReadHandle(1, 0, None)
    arrival.finish(error)
    part = Part(nn.Linear(1, 1), arrival)
    for _ in range(2):
        with pytest.raises(type(error), match=str(error)), part.ready():
            pass
        assert part.failed
    with pytest.raises(type(error)) as caught, part.ready():
        pass
    assert caught.value is not error, "its traceback would keep the memory"


def test_files_that_fail_are_the_models_fault() -> None:
    arrival = ReadHandle(1, 0, None)
    arrival.finish(EOFError("a.safetensors ends too early"))
    part = Part(nn.Linear(1, 1), arrival)
    with pytest.raises(ModelError, match=r"a\.safetensors ends too early"), part.ready():
        pass


def test_an_interrupt_while_weights_come_does_not_leave_a_module_that_seems_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reader(CPU) as reader:
        part = load(folder, reader=reader)

    def interrupted(_: ReadHandle) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ReadHandle, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt), part.ready():
            pass
    with part.ready() as model:
        assert torch.equal(model.out.weight, weights()["out.weight"])


def test_waiting_is_counted_once_and_no_weight_is_an_inference_tensor(folder: Path) -> None:
    with Reader(CPU) as reader:
        part = load(folder, reader=reader)
    assert part.waited == 0.0
    with torch.inference_mode(), part.ready() as model:
        assert not model.out.weight.is_inference()
    waited = part.waited
    assert waited > 0
    assert part.read_bytes == 4 * (32 * (16 + 48 + 16) + 16)
    with part.ready():
        pass
    assert part.waited == waited


@pytest.mark.process
def test_loading_imports_no_compiler(folder: Path) -> None:
    """An operation on the meta device would, and take seconds of every start on a GPU."""
    script = (
        "import sys, torch\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "import test_part as t\n"
        "from klein_cli.checkpoints.reader import Reader\n"
        "from klein_cli.optimize.backend import Backend\n"
        "from klein_cli.optimize.linears import pack\n"
        "steps = {'transformer': (pack, lambda m: m.to(memory_format=torch.channels_last))}\n"
        "with Reader(t.CPU) as reader:\n"
        f"    t.load(Path({str(folder)!r}), Backend(steps=steps), reader=reader)\n"
        "sys.exit(bool({'sympy', 'torch._dynamo'} & set(sys.modules)))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent)
