"""Graphs launch what the function launches: the same bits, in less time, in bounded memory."""

from __future__ import annotations

import pytest
import torch
from small_models import FLUX2, QWEN3, VAE, filled, flux2_inputs
from torch import Tensor

from klein_cli.models.attention import AttentionLengths, MaskAlone, SdpaAttention
from klein_cli.models.flux2 import Flux2Transformer
from klein_cli.models.qwen3 import Qwen3Model
from klein_cli.models.vae import VaeDecoder
from klein_cli.recipe import Settings
from klein_cli.speed.graphs import Graphs, direct
from klein_cli.speed.tools import tools

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
    kit = tools(Settings(device="cuda", kernels=kernels))
    dit = filled(Flux2Transformer(FLUX2, kit.flux2)).to(CUDA, dtype)
    kit.prepare(dit)
    latents, timestep, text, ids = flux2_inputs(dtype, CUDA)
    for scale in (1, 3):  # the second is a replay of what the first recorded
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
    """Lengths change between replays: the mask is an input, not a part of the graph."""
    if kernels == "triton":
        pytest.importorskip("triton")
    kit = tools(Settings(device="cuda", kernels=kernels))
    model = filled(Qwen3Model(QWEN3, (1, 2), SdpaAttention(), kit.qwen3)).to(CUDA, dtype)
    kit.prepare(model)

    def encode(ids: Tensor, mask: Tensor) -> Tensor:
        return torch.stack(model(ids, MaskAlone(mask)))

    found = []
    for length in (3, 16, 9):
        ids = torch.arange(length, length + 16, device=CUDA)[None] % 50
        lengths = AttentionLengths((length,), 16, CUDA)
        found.append(graphs(encode, ids, lengths.mask))
        assert torch.equal(found[-1], torch.stack(model(ids, lengths)))
    assert not torch.equal(found[0], found[1])


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_not_a_bit_of_the_decoder_differs(graphs: Graphs, dtype: torch.dtype, kernels: str) -> None:
    if kernels == "triton":
        pytest.importorskip("triton")
    kit = tools(Settings(device="cuda", kernels=kernels))
    decoder = filled(VaeDecoder(VAE, kit.vae)).to(CUDA, dtype)
    kit.prepare(decoder)
    for seed in (1, 2):
        latents = torch.randn(1, 4, 8, 6, generator=torch.manual_seed(seed)).to(CUDA, dtype)
        assert torch.equal(graphs(decoder, latents), decoder(latents))


@pytest.mark.gpu
@torch.inference_mode()
def test_results_are_the_callers_own(graphs: Graphs) -> None:
    """A later replay writes into the graph's memory, not into what was handed out."""
    one, two = (graphs(double, torch.full((4,), float(n), device=CUDA)) for n in (1, 2))
    assert one.tolist() == [2.0] * 4
    assert two.tolist() == [4.0] * 4


@pytest.mark.gpu
@torch.inference_mode()
def test_many_sizes_hold_no_more_than_a_few() -> None:
    graphs = Graphs(CUDA, most=2)
    held = []
    for size in [*range(1, 40), 5, 1]:
        x = torch.ones(size, 2**18, device=CUDA)
        assert torch.equal(graphs(double, x), x * 2)
        assert len(graphs._captured) <= 2
        del x
        held.append(torch.cuda.memory_allocated())
    assert max(held) < 39 * 2**20 * 4 * 4
    graphs.clear()
    assert torch.equal(graphs(double, torch.ones(3, device=CUDA)).cpu(), torch.full((3,), 2.0))


@pytest.mark.gpu
@torch.inference_mode()
def test_a_function_that_fails_leaves_the_graphs_usable(graphs: Graphs) -> None:
    x = torch.ones(4, device=CUDA)
    calls = []

    def fails_while_recorded(x: Tensor) -> Tensor:
        calls.append(1)
        more = x + 1
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no room")
        return more

    with pytest.raises(torch.OutOfMemoryError):
        graphs(fails_while_recorded, x)
    assert graphs(double, x).tolist() == [2.0] * 4
    assert graphs(fails_while_recorded, x).tolist() == [2.0] * 4
