"""The loop on velocities whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from klein_cli.sampling.loop import denoise

SIGMAS = torch.tensor([1.0, 0.75, 0.25, 0.0])
TEXT = torch.full((2, 5, 3), 2.0)
NOISE = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))


def test_a_straight_path_ends_at_its_picture() -> None:
    picture = torch.full((2, 4, 3), 0.25)

    def straight(latents: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        return (latents - picture) / sigma

    out = denoise(straight, NOISE, SIGMAS, TEXT)
    assert torch.allclose(out, picture, atol=1e-6)


def test_the_transformer_gets_sigma_itself_of_shape_1() -> None:
    """Fed 1000 times too large it still makes an image, a wrong one."""
    seen: list[Tensor] = []

    def zero(latents: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        seen.append(sigma.clone())
        assert text is TEXT
        return torch.zeros_like(latents)

    assert torch.equal(denoise(zero, NOISE, SIGMAS, TEXT), NOISE)
    assert [tuple(sigma.shape) for sigma in seen] == [(1,)] * 3
    assert torch.equal(torch.cat(seen), SIGMAS[:3])


@pytest.mark.parametrize("guidance", [1.5, 4.0])
def test_guidance_goes_from_the_negative_prompt_through_the_prompt(guidance: float) -> None:
    negative = torch.full((2, 5, 3), -1.0)

    def mean(latents: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        return torch.zeros_like(latents) + text.mean()

    out = denoise(mean, NOISE, SIGMAS, TEXT, guidance=guidance, negative=negative)
    velocity = -1.0 + guidance * (2.0 - -1.0)
    assert torch.allclose(out, NOISE - velocity, atol=1e-5)
    unguided = denoise(mean, NOISE, SIGMAS, TEXT, guidance=guidance)
    assert torch.allclose(unguided, NOISE - 2.0, atol=1e-5)


def test_latents_stay_float32_under_a_narrow_model() -> None:
    def narrow(latents: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        return torch.full_like(latents, 1 / 512, dtype=torch.bfloat16)

    out = denoise(narrow, NOISE, SIGMAS, TEXT)
    assert out.dtype == torch.float32
    assert torch.allclose(out, NOISE - 1 / 512, atol=1e-7)


def test_each_step_is_told_with_what_it_left() -> None:
    told: list[tuple[int, float]] = []
    left: list[Tensor] = []

    def callback(step: int, sigma: float, latents: Tensor) -> None:
        told.append((step, sigma))
        left.append(latents)

    out = denoise(lambda latents, sigma, text: latents, NOISE, SIGMAS, TEXT, callback=callback)
    assert told == [(1, 0.75), (2, 0.25), (3, 0.0)]
    assert torch.equal(left[0], NOISE + (0.75 - 1.0) * NOISE)
    assert left[-1] is out
