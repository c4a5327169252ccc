"""Noise that only the seed decides, in diffusers' order, with diffusers' positions."""

from __future__ import annotations

import pytest
import torch

from klein_cli.sampling.latents import noise, position_ids

CPU = torch.device("cpu")


def test_noise_is_packed_as_diffusers_packs_it() -> None:
    from diffusers import Flux2KleinPipeline

    latents = noise([41], width=96, height=64, channels=128, device=CPU)
    drawn = torch.randn(1, 128, 4, 6, generator=torch.Generator().manual_seed(41))
    assert latents.grid == (4, 6)
    assert torch.equal(latents.packed, Flux2KleinPipeline._pack_latents(drawn))


def test_a_picture_gets_the_noise_of_its_seed_in_any_batch() -> None:
    together = noise([5, 6, 5], width=32, height=48, channels=8, device=CPU).packed
    alone = noise([6], width=32, height=48, channels=8, device=CPU).packed
    assert torch.equal(together[1], alone[0])
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_noise_is_not_rounded_to_what_the_model_computes_in(dtype: torch.dtype) -> None:
    options = {"width": 32, "height": 48, "channels": 8, "device": CPU}
    wide = noise([5], **options, dtype=torch.float32).packed  # type: ignore[arg-type]
    assert torch.equal(noise([5], **options, dtype=dtype).packed, wide)  # type: ignore[arg-type]


def test_noise_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    noise([1], width=32, height=32, channels=8, device=CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(
    torch.__version__ < "2.13", reason="torch draws narrow numbers otherwise before 2.13"
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_narrower_draw_on_the_cpu_is_this_one_rounded(dtype: torch.dtype) -> None:
    """So the same seed means the same noise whatever the model's dtype."""
    wide = noise([9], width=64, height=64, channels=128, device=CPU).packed
    generator = torch.Generator().manual_seed(9)
    drawn = torch.randn(1, 128, 4, 4, generator=generator, dtype=dtype)
    assert torch.equal(wide.to(dtype), drawn.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (1, 1)])
def test_positions_are_diffusers(grid: tuple[int, int]) -> None:
    from diffusers import Flux2KleinPipeline

    ids = position_ids(512, grid, CPU)
    text = Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, 512, 8))[0]
    image = Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 8, *grid))[0]
    assert torch.equal(ids, torch.cat((text, image)))


@pytest.mark.parametrize("references", [[(4, 6)], [(4, 6), (5, 3), (1, 1)]])
def test_positions_of_references_are_diffusers(references: list[tuple[int, int]]) -> None:
    """At t = 10, 20 and so on, each from (0, 0) on."""
    from diffusers import Flux2KleinPipeline

    ids = position_ids(3, (2, 2), CPU, references)
    images = [torch.zeros(1, 8, *grid) for grid in references]
    assert torch.equal(ids[3 + 4 :], Flux2KleinPipeline._prepare_image_ids(images)[0])
    assert set(ids[:, 0].tolist()) == {10 * k for k in range(len(references) + 1)}


@pytest.mark.gpu
def test_noise_drawn_on_the_gpu_is_the_official_codes() -> None:
    cuda = torch.device("cuda")
    found = noise(
        [3],
        width=64,
        height=32,
        channels=128,
        device=cuda,
        drawn_on="cuda",
        dtype=torch.bfloat16,
    ).packed
    generator = torch.Generator(cuda).manual_seed(3)
    drawn = torch.randn(
        1, 128, 2, 4, generator=generator, device=cuda, dtype=torch.bfloat16
    ).float()
    assert found.dtype == torch.float32
    assert torch.equal(found, drawn.flatten(2).transpose(1, 2))


@pytest.mark.gpu
def test_noise_drawn_on_the_cpu_is_the_same_on_a_gpu() -> None:
    here = noise([3], width=64, height=32, channels=128, device=CPU).packed
    there = noise([3], width=64, height=32, channels=128, device=torch.device("cuda")).packed
    assert torch.equal(here, there.cpu())
