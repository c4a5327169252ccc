"""Our VAE decoder against diffusers' own: the same keys, the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from small_models import distance

from klein_cli.errors import ModelError
from klein_cli.models.vae import VaeConfig, VaeDecoder, latent_scale

CONFIG: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 16, 16, 24],
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "batch_norm_eps": 1e-4,
    "patch_size": [2, 2],
}


def both(config: dict[str, Any] = CONFIG) -> tuple[VaeDecoder, AutoencoderKLFlux2]:
    """Our decoder and diffusers' autoencoder, of the same random weights."""
    torch.manual_seed(0)
    theirs = AutoencoderKLFlux2(**config).eval().requires_grad_(False)
    for name, p in theirs.named_parameters():
        if p.ndim == 1:
            p.uniform_(-0.5, 0.5) if name.endswith("bias") else p.uniform_(0.5, 1.5)
    theirs.bn.running_mean.normal_()
    theirs.bn.running_var.uniform_(0.5, 2.0)
    ours = VaeDecoder(VaeConfig.from_json(config)).eval().requires_grad_(False)
    unread = ("encoder.", "quant_conv.")
    states = {k: v for k, v in theirs.state_dict().items() if not k.startswith(unread)}
    ours.load_state_dict(states)
    return ours, theirs


@pytest.mark.parametrize("size", [(6, 6), (4, 10)])
@pytest.mark.parametrize(
    "change", [{}, {"layers_per_block": 1}, {"decoder_block_out_channels": [4, 8, 8, 12]}]
)
def test_equals_diffusers_in_float32(size: tuple[int, int], change: dict[str, Any]) -> None:
    ours, theirs = both({**CONFIG, **change})
    latents = torch.randn(1, 4, *size)
    found, expected = ours(latents), theirs.decode(latents, return_dict=False)[0]
    assert found.shape == (1, 3, 8 * size[0], 8 * size[1])
    assert distance(found, expected) < 1e-5


def test_is_no_further_from_float32_than_diffusers_is() -> None:
    ours, theirs = both()
    latents = torch.randn(1, 4, 6, 6)
    exact = theirs.decode(latents, return_dict=False)[0]
    ours, theirs, latents = (x.to(torch.bfloat16) for x in (ours, theirs, latents))
    found, expected = ours(latents), theirs.decode(latents, return_dict=False)[0]
    assert distance(found, exact) <= 1.02 * distance(expected, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_diffusers_on_cuda(dtype: torch.dtype) -> None:
    ours, theirs = (module.to("cuda", dtype) for module in both())
    latents = torch.randn(1, 4, 8, 8, device="cuda", dtype=dtype)
    found, expected = ours(latents), theirs.decode(latents, return_dict=False)[0]
    assert distance(found, expected) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_the_scale_of_the_latents_is_that_of_the_pipeline() -> None:
    ours, theirs = both()
    mean, deviation = latent_scale(ours.bn)
    expected = torch.sqrt(theirs.bn.running_var + theirs.config.batch_norm_eps)
    assert torch.equal(mean, theirs.bn.running_mean)
    assert torch.equal(deviation, expected)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"latent_channels": None}, "lacks latent_channels"),
        ({"act_fn": "relu"}, "act_fn is 'relu'"),
        ({"norm_num_groups": 5}, "by norm_num_groups is 4"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention is False"),
        ({"use_post_quant_conv": False}, "use_post_quant_conv is False"),
    ],
)
def test_refuses_what_it_does_not_compute(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        VaeConfig.from_json({**CONFIG, **change})
