"""Graphs launch what the function launches: the same bits, in less time, in bounded memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from small_models import FLUX2, QWEN3, VAE, filled, flux2_inputs
from torch import Tensor

from klein_cli.models.attention import AttentionLengths, SdpaAttention
from klein_cli.models.flux2 import Flux2Transformer
from klein_cli.models.qwen3 import Qwen3Model
from klein_cli.models.vae import VaeDecoder
from klein_cli.optimize.backend import backend_for
from klein_cli.optimize.graphs import Graphs, TensorFunction, direct
from klein_cli.settings import Settings

CUDA = torch.device("cuda")
KERNELS = ("torch", "triton")


def double(x: Tensor) -> Tensor:
    return x * 2


def test_direct_is_the_function_itself() -> None:
    x = torch.ones(2)
    assert direct(lambda a: a, x) is x


@pytest.fixture
def graphs() -> Graphs:
    return Graphs(CUDA)


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_not_a_bit_of_the_transformer_differs(
    graphs: Graphs, dtype: torch.dtype, kernels: str
) -> None:
    if kernels == "triton":
        pytest.importorskip("triton")
    backend = backend_for(Settings(device="cuda", kernels=kernels))
    dit = filled(Flux2Transformer(FLUX2, backend.flux2)).to(CUDA, dtype)
    backend.prepare("transformer", dit)
    latents, timestep, text, ids = flux2_inputs(dtype, CUDA)
    for scale in (1, 3, 2):  # the second records, the third replays
        given = (latents * scale, dit.context_embedder(text), dit.modulations(timestep * scale))
        wanted = dit.velocity(*given, *dit.rotary(ids))
        assert torch.equal(graphs(dit.velocity, *given, *dit.rotary(ids)), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_not_a_bit_of_the_text_encoder_differs(
    graphs: Graphs, dtype: torch.dtype, kernels: str
) -> None:
    """Lengths change between replays: they are an input, from which the graph makes the mask."""
    if kernels == "triton":
        pytest.importorskip("triton")
    backend = backend_for(Settings(device="cuda", kernels=kernels))
    model = filled(Qwen3Model(QWEN3, (1, 2), SdpaAttention(), backend.qwen3)).to(CUDA, dtype)
    backend.prepare("text_encoder", model)

    found = []
    for length in (3, 16, 9):
        ids = torch.arange(length, length + 16, device=CUDA)[None] % 50
        lengths = AttentionLengths.of((length,), 16, CUDA)
        found.append(graphs(model.embeddings_by_counts, ids, lengths.counts))
        assert torch.equal(found[-1], model.embeddings(ids, lengths))
    assert not torch.equal(found[0], found[1])


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_not_a_bit_of_the_decoder_differs(graphs: Graphs, dtype: torch.dtype, kernels: str) -> None:
    if kernels == "triton":
        pytest.importorskip("triton")
    backend = backend_for(Settings(device="cuda", kernels=kernels))
    decoder = filled(VaeDecoder(VAE, backend.vae)).to(CUDA, dtype)
    backend.prepare("vae", decoder)
    for seed in (1, 2, 3):
        latents = torch.randn(1, 4, 8, 6, generator=torch.manual_seed(seed)).to(CUDA, dtype)
        assert torch.equal(graphs(decoder, latents), decoder(latents))


@pytest.mark.gpu
@torch.inference_mode()
def test_results_are_the_callers_own(graphs: Graphs) -> None:
    """A later replay writes into the graph's memory, not into what was handed out."""
    _, one, two = (graphs(double, torch.full((4,), float(n), device=CUDA)) for n in (0, 1, 2))
    assert one.tolist() == [2.0] * 4
    assert two.tolist() == [4.0] * 4


@pytest.mark.gpu
@torch.inference_mode()
def test_many_sizes_hold_no_more_than_a_few() -> None:
    """Growing sizes find no place in the memory of those before: the pool must be given back."""
    torch.cuda.empty_cache()
    graphs, before = Graphs(CUDA, most=2), torch.cuda.memory_reserved()
    held = []
    for size in [*range(1, 40), 5, 1]:
        x = torch.ones(size, 2**18, device=CUDA)
        for _ in range(2):
            assert torch.equal(graphs(double, x), x * 2)
        assert len(graphs._captured) <= 2
        del x
        held.append(torch.cuda.memory_reserved() - before)
    assert max(held) < 500 * 2**20
    graphs.clear()
    assert torch.equal(graphs(double, torch.ones(3, device=CUDA)).cpu(), torch.full((3,), 2.0))


class Recorded:
    """In the place of a captured graph, where there is no GPU."""

    def __init__(self, function: TensorFunction) -> None:
        self.function = function
        self.graph = SimpleNamespace(reset=lambda: None)

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return self.function(*inputs)


class Small(Graphs):
    """Graphs on a device whose memory holds only graphs of few rows, and only some of them."""

    def __init__(self, rows: int, most: int = 8) -> None:
        self.rows = rows
        self.cleared = 0
        with patch("torch.cuda.Stream"):
            super().__init__(CUDA, most)

    def _capture(self, function: TensorFunction, inputs: tuple[Tensor, ...]) -> Any:
        if len(inputs[0]) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return Recorded(function)

    def _on_stream(self, function: TensorFunction, *inputs: Tensor) -> Tensor:
        return function(*inputs)

    def clear(self) -> None:
        self.cleared += 1
        with patch("torch.cuda.synchronize"), patch("torch.cuda.empty_cache"):
            super().clear()


def test_nothing_is_recorded_for_a_function_that_is_used_once() -> None:
    """A process of one image would compute the text encoder and the VAE twice."""
    graphs, calls = Small(rows=9), []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x * 2

    assert graphs(counted, torch.ones(1)).tolist() == [2.0]
    assert (calls, graphs._captured) == ([1], {})
    graphs(counted, torch.ones(1))
    assert len(graphs._captured) == 1


def test_all_go_together_when_there_are_too_many() -> None:
    graphs = Small(rows=9, most=2)
    for rows in (1, 2, 1, 2):
        graphs(double, torch.ones(rows))
    assert (graphs.cleared, len(graphs._captured)) == (0, 2)
    for _ in range(2):
        assert graphs(double, torch.ones(3)).tolist() == [2.0] * 3
    assert (graphs.cleared, len(graphs._captured)) == (1, 1)


def test_without_memory_for_a_graph_the_function_runs_as_it_is() -> None:
    """And is not a step down: no bit differs."""
    graphs = Small(rows=1)
    for rows in (1, 1, 2, 2):
        assert graphs(double, torch.ones(rows)).tolist() == [2.0] * rows
    assert len(graphs._captured) == 1


def test_what_graphs_hold_is_given_back_before_memory_has_run_out() -> None:
    graphs = Small(rows=1)
    for _ in range(2):
        graphs(double, torch.ones(1))

    def needs_it_all(x: Tensor) -> Tensor:
        if graphs._captured:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return x * 2

    assert graphs(needs_it_all, torch.ones(2)).tolist() == [2.0] * 2
    assert graphs.cleared == 1

    def needs_more(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        graphs(needs_more, torch.ones(2))


class FailsWhileRecorded:
    """x + 1, but for the second call: the first is the one before a graph is recorded."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        more = x + 1
        if self.calls == 2:
            raise self.error
        return more


@pytest.mark.gpu
@torch.inference_mode()
def test_a_function_that_fails_leaves_the_graphs_usable(graphs: Graphs) -> None:
    x, function = torch.ones(4, device=CUDA), FailsWhileRecorded(ZeroDivisionError())
    assert graphs(function, x).tolist() == [2.0] * 4
    with pytest.raises(ZeroDivisionError):
        graphs(function, x)
    for _ in range(2):
        assert graphs(double, x).tolist() == [2.0] * 4
        assert graphs(function, x).tolist() == [2.0] * 4


@pytest.mark.gpu
@torch.inference_mode()
def test_a_graph_that_finds_no_memory_is_done_without(graphs: Graphs) -> None:
    x, function = torch.ones(4, device=CUDA), FailsWhileRecorded(torch.OutOfMemoryError("no room"))
    for _ in range(3):
        assert graphs(function, x).tolist() == [2.0] * 4
    assert function.calls == 4, "used, recorded, and then as it is each time"
    assert graphs(double, x).tolist() == [2.0] * 4
