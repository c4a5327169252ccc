"""What a mask keeps, on latents whose answers are known."""

from __future__ import annotations

import torch
from torch import Tensor

from klein_cli.sampling.loop import denoise
from klein_cli.sampling.masks import Kept

SIGMAS = torch.tensor([1.0, 0.75, 0.25, 0.0])
GENERATOR = torch.Generator().manual_seed(0)
SOURCE = torch.randn(1, 4, 3, generator=GENERATOR)
NOISE = torch.randn(2, 4, 3, generator=GENERATOR)
PAINTED = torch.tensor([[True, False, False, True], [False, False, True, True]])[:, :, None]
KEPT = Kept(source=SOURCE, noise=NOISE, painted=PAINTED)


def test_each_step_leaves_the_source_at_the_noise_level_that_it_reached() -> None:
    """Not that of the step before, and with the noise that the image began as."""
    seen: list[Tensor] = []

    def velocity(latents: Tensor, sigma: Tensor, condition: None) -> Tensor:
        seen.append(latents)
        return torch.ones_like(latents)

    out = denoise(velocity, NOISE, SIGMAS, None, blend=KEPT)
    kept = ~PAINTED.expand_as(NOISE)
    for level, latents in zip(SIGMAS, [*seen, out], strict=True):
        expected = level * NOISE + (1 - level) * SOURCE
        assert torch.equal(latents[kept], expected[kept])
    assert torch.equal(out[kept], SOURCE.expand_as(out)[kept])


def test_what_is_painted_takes_its_own_way() -> None:
    def velocity(latents: Tensor, sigma: Tensor, condition: None) -> Tensor:
        return torch.full_like(latents, 0.5)

    out = denoise(velocity, NOISE, SIGMAS, None, blend=KEPT)
    painted = PAINTED.expand_as(out)
    assert torch.allclose(out[painted], (NOISE - 0.5)[painted])


def test_the_callback_sees_what_goes_on() -> None:
    heard: list[Tensor] = []
    out = denoise(
        lambda latents, sigma, condition: torch.zeros_like(latents),
        NOISE,
        SIGMAS,
        None,
        blend=KEPT,
        callback=lambda number, sigma, latents: heard.append(latents),
    )
    assert torch.equal(heard[-1], out)
