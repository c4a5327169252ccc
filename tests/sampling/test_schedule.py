"""The sigmas are diffusers', to the last bit, and the ones published for the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from klein_cli.sampling.schedule import noise_levels, shift, sigmas


@pytest.mark.parametrize(
    ("side", "mu", "levels"),
    [
        (1024, 2.291179894, [1, 0.967384040, 0.908143878, 0.767199934, 0]),
        (512, 2.030690, [1, 0.958085, 0.883982, 0.717497, 0]),
    ],
)
def test_four_steps(side: int, mu: float, levels: list[float]) -> None:
    tokens = (side // 16) ** 2
    assert shift(tokens, 4) == pytest.approx(mu, abs=1e-6)
    assert sigmas(tokens, 4).tolist() == pytest.approx(levels, abs=1e-6)


@settings(deadline=None, max_examples=80)
@given(tokens=st.integers(1, 20000), steps=st.integers(1, 120))
@example(tokens=4300, steps=4)  # the last of one formula
@example(tokens=4301, steps=4)  # the first of the other
def test_every_number_is_diffusers(tokens: int, steps: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    mu = compute_empirical_mu(image_seq_len=tokens, num_steps=steps)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    found = sigmas(tokens, steps)
    assert shift(tokens, steps) == mu
    assert found.dtype == torch.float32
    assert torch.equal(found, scheduler.sigmas)


def test_a_record_holds_the_levels_exactly_and_in_few_digits() -> None:
    levels = noise_levels(512, 256, 4)
    assert torch.equal(torch.tensor(levels), sigmas(32 * 16, 4))
    assert all(len(repr(level)) <= 10 for level in levels)
