"""Our VAE encoder against diffusers' own: the same keys, the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from small_models import distance
from torch import Tensor

from klein_cli.models.vae import VaeConfig
from klein_cli.models.vae_encoder import VaeEncoder
from klein_cli.sampling.encode import encode_image

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


def both(config: dict[str, Any] = CONFIG) -> tuple[VaeEncoder, AutoencoderKLFlux2]:
    """Our encoder and diffusers' autoencoder, of the same random weights."""
    torch.manual_seed(0)
    theirs = AutoencoderKLFlux2(**config).eval().requires_grad_(False)
    for name, p in theirs.named_parameters():
        if p.ndim == 1:
            p.uniform_(-0.5, 0.5) if name.endswith("bias") else p.uniform_(0.5, 1.5)
    theirs.bn.running_mean.normal_()
    theirs.bn.running_var.uniform_(0.001, 0.002)
    ours = VaeEncoder(VaeConfig.from_json(config)).eval().requires_grad_(False)
    unread = ("decoder.", "post_quant_conv.")
    states = {k: v for k, v in theirs.state_dict().items() if not k.startswith(unread)}
    ours.load_state_dict(states)
    return ours, theirs


def image(height: int, width: int) -> Tensor:
    """(1, 3, height, width), channels last."""
    made = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return made.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(48, 48), (32, 80)])
@pytest.mark.parametrize(
    "change", [{}, {"layers_per_block": 1}, {"decoder_block_out_channels": [4, 8, 8, 12]}]
)
def test_equals_diffusers_in_float32(size: tuple[int, int], change: dict[str, Any]) -> None:
    """The mean of the distribution; a small decoder's widths are not the encoder's."""
    ours, theirs = both({**CONFIG, **change})
    found, expected = ours(image(*size)), theirs.encode(image(*size)).latent_dist.mode()
    assert found.shape == (1, 4, size[0] // 8, size[1] // 8)
    assert distance(found, expected) < 1e-5


def test_is_about_as_far_from_float32_as_diffusers_is() -> None:
    ours, theirs = both()
    exact = theirs.encode(image(48, 48)).latent_dist.mode()
    ours, theirs, given = (x.to(torch.bfloat16) for x in (ours, theirs, image(48, 48)))
    found, expected = ours(given), theirs.encode(given).latent_dist.mode()
    assert distance(found, exact) <= 1.1 * distance(expected, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_diffusers_on_cuda(dtype: torch.dtype) -> None:
    ours, theirs = (module.to("cuda", dtype) for module in both())
    given = image(64, 64).to("cuda", dtype)
    found, expected = ours(given), theirs.encode(given).latent_dist.mode()
    assert distance(found, expected) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_latents_are_normalised_as_the_pipeline_does() -> None:
    """Row by row, with 1e-4 under the root: of such small variances that 1e-5 would show."""
    from diffusers import Flux2KleinPipeline

    ours, theirs = both()
    pipe = Flux2KleinPipeline.__new__(Flux2KleinPipeline)
    pipe.vae = theirs
    expected = pipe._pack_latents(pipe._encode_vae_image(image(32, 80), None))[0]
    scale = theirs.bn.running_mean, torch.sqrt(theirs.bn.running_var + 1e-4)
    found = encode_image(image(32, 80)[0], scale, ours, dtype=torch.float32)
    assert found.shape == (2 * 5, 16)
    assert distance(found, expected) < 1e-5
