"""Our DiT against diffusers' own: the same keys, the same numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux2 import Flux2PosEmbed, Flux2Transformer2DModel
from small_models import distance
from torch import Tensor

from klein_cli.errors import ModelError
from klein_cli.models.flux2 import Flux2Config, Flux2Transformer, rotary_embedding
from klein_cli.sampling.latents import position_ids

CONFIG: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "joint_attention_dim": 24,
    "timestep_guidance_channels": 32,
    "mlp_ratio": 3.0,
    "axes_dims_rope": [2, 6, 4, 4],
    "rope_theta": 2000,
    "eps": 1e-6,
    "guidance_embeds": False,
}
GRID = (5, 7)
WORDS = 20


def both(config: dict[str, Any] = CONFIG) -> tuple[Flux2Transformer, Flux2Transformer2DModel]:
    """Our DiT and diffusers', of the same random weights, norm weights too."""
    torch.manual_seed(0)
    theirs = Flux2Transformer2DModel(**config).eval().requires_grad_(False)
    for p in theirs.parameters():
        if p.ndim == 1:
            p.uniform_(0.5, 1.5)
    ours = Flux2Transformer(Flux2Config.from_json(config)).eval().requires_grad_(False)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, text and position ids."""
    torch.manual_seed(1)
    latents = torch.randn(batch, GRID[0] * GRID[1], CONFIG["in_channels"])
    text = torch.randn(batch, WORDS, CONFIG["joint_attention_dim"])
    return latents, text, position_ids(WORDS, GRID, torch.device("cpu"))


def velocities(
    ours: Flux2Transformer,
    theirs: Flux2Transformer2DModel,
    sigma: float,
    dtype: torch.dtype,
    device: str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Both velocities of the same inputs at a noise level."""
    latents, text, ids = (x.to(device) for x in inputs())
    latents, text = latents.to(dtype), text.to(dtype)
    timestep = torch.tensor([sigma * 1000], device=device).to(dtype)
    expected = theirs(
        hidden_states=latents,
        encoder_hidden_states=text,
        timestep=timestep / 1000,
        txt_ids=ids[:WORDS],
        img_ids=ids[WORDS:],
        guidance=None,
        return_dict=False,
    )[0]
    return ours(latents, timestep, text, ids), expected


def test_far_positions_turn_as_diffusers_turns_them() -> None:
    """Angles of hundreds of radians in float32 would be off by 1e-5."""
    axes, ids = [32, 32, 32, 32], position_ids(512, (64, 64), torch.device("cpu"))
    wanted = Flux2PosEmbed(theta=2000, axes_dim=axes)(ids)
    for found, expected in zip(rotary_embedding(ids, axes, 2000), wanted, strict=True):
        assert float((found[:, 0] - expected).abs().max()) < 2e-7


@pytest.mark.parametrize("sigma", [1.0, 0.7672, 0.05])
def test_equals_diffusers_in_float32(sigma: float) -> None:
    found, expected = velocities(*both(), sigma, torch.float32)
    assert found.shape == expected.shape
    assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_is_no_further_from_float32_than_diffusers_is(dtype: torch.dtype) -> None:
    ours, theirs = both()
    _, exact = velocities(ours, theirs, 0.9, torch.float32)
    found, expected = velocities(ours.to(dtype), theirs.to(dtype), 0.9, dtype)
    assert found.dtype == dtype
    assert distance(found, exact) <= 1.02 * distance(expected, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_diffusers_on_cuda(dtype: torch.dtype) -> None:
    ours, theirs = (module.to("cuda", dtype) for module in both())
    found, expected = velocities(ours, theirs, 0.9, dtype, "cuda")
    assert distance(found, expected) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_every_input_reaches_the_output() -> None:
    ours, _ = both()
    latents, text, ids = inputs()
    timestep = torch.tensor([900.0])
    plain = ours(latents, timestep, text, ids)
    moved_text = text.clone()
    moved_text[:, -1] += 1
    moved_ids = ids.clone()
    moved_ids[-1, 1] += 3
    for other in (
        ours(latents, torch.tensor([500.0]), text, ids),
        ours(latents, timestep, moved_text, ids),
        ours(latents, timestep, text, moved_ids),
    ):
        assert distance(other, plain) > 1e-4


def test_a_picture_does_not_depend_on_its_neighbour() -> None:
    ours, _ = both()
    latents, text, ids = inputs(3)
    together = ours(latents, torch.tensor([900.0]), text, ids)
    for i in range(3):
        alone = ours(latents[i : i + 1], torch.tensor([900.0]), text[i : i + 1], ids)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_layers": None}, "lacks num_layers"),
        ({"guidance_embeds": True}, "guidance_embeds is True"),
        ({"patch_size": 2}, "patch_size is 2"),
        ({"axes_dims_rope": [4, 4, 4]}, "sum of axes_dims_rope is 12"),
        ({"num_layers": "two"}, "num_layers is 'two'"),
        ({"attention_head_dim": -16}, "attention_head_dim is -16"),
        ({"axes_dims_rope": [2, 6, 4, "4"]}, "axes_dims_rope is"),
        ({"axes_dims_rope": []}, "axes_dims_rope is"),
        ({"mlp_ratio": math.inf}, "mlp_ratio is inf"),
        ({"mlp_ratio": math.nan}, "mlp_ratio is nan"),
        ({"mlp_ratio": 10**400}, "mlp_ratio is 1"),
        ({"mlp_ratio": 1e9}, "feed-forward's width would be"),
        ({"rope_theta": True}, "rope_theta is True"),
        ({"num_layers": 10**400}, "num_layers is 1"),
        ({"num_single_layers": 10**6}, "num_single_layers is 1000000"),
        ({"num_attention_heads": 2**20}, "its width would be"),
    ],
)
def test_refuses_what_it_does_not_compute(change: dict[str, Any], complaint: str) -> None:
    """json knows Infinity, NaN and numbers of any length: torch answers those with a traceback."""
    with pytest.raises(ModelError, match=complaint):
        Flux2Config.from_json({**CONFIG, **change})


REFERENCES = ((4, 3), (2, 6))


def reference_inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, text, two references in a row, and the position ids of all."""
    latents, text, _ = inputs(batch)
    tokens = sum(rows * columns for rows, columns in REFERENCES)
    references = torch.randn(1, tokens, CONFIG["in_channels"])
    return latents, text, references, position_ids(WORDS, GRID, torch.device("cpu"), REFERENCES)


def prepared(ours: Flux2Transformer, sigma: float, text: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    """What `velocity` is given besides latents and references."""
    modulations = ours.modulations(torch.tensor([sigma * 1000]))
    return ours.context_embedder(text), modulations, *ours.rotary(ids)


def sharper(ours: Flux2Transformer, theirs: Flux2Transformer2DModel) -> None:
    """Attention that looks at some tokens more than at others, in both."""
    for module in (ours, theirs):
        for name, p in module.named_parameters():
            if "norm_" in name:
                p.mul_(3)


def test_references_stand_behind_the_image_and_have_no_velocity() -> None:
    ours, theirs = both()
    sharper(ours, theirs)
    latents, text, references, ids = reference_inputs()
    expected = theirs(
        hidden_states=torch.cat((latents, references.expand(2, -1, -1)), dim=1),
        encoder_hidden_states=text,
        timestep=torch.tensor([0.9]),
        txt_ids=ids[:WORDS],
        img_ids=ids[WORDS:],
        guidance=None,
        return_dict=False,
    )[0]
    found = ours.velocity(latents, *prepared(ours, 0.9, text, ids), references)
    assert found.shape == latents.shape
    assert distance(found, expected[:, : latents.shape[1]]) < 1e-5


@pytest.mark.parametrize("sigma", [1.0, 0.7672])
def test_keys_of_references_kept_are_those_of_diffusers(sigma: float) -> None:
    """Extracted at a noisy step, among text and image: the same, and so is the velocity."""
    from diffusers.models.transformers.transformer_flux2 import (
        Flux2KVAttnProcessor,
        Flux2KVParallelSelfAttnProcessor,
    )

    ours, theirs = both()
    sharper(ours, theirs)
    for block in theirs.transformer_blocks:
        block.attn.set_processor(Flux2KVAttnProcessor())
    for block in theirs.single_transformer_blocks:
        block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    latents, text, references, ids = reference_inputs()
    text_ids, image_ids, theirs_of = ids.split((WORDS, GRID[0] * GRID[1], references.shape[1]))
    every = references.expand(2, -1, -1)
    expected, cache = theirs(
        hidden_states=torch.cat((every, latents), dim=1),
        encoder_hidden_states=text,
        timestep=torch.tensor([sigma]).expand(2),
        txt_ids=text_ids.expand(2, -1, -1),
        img_ids=torch.cat((theirs_of, image_ids)).expand(2, -1, -1),
        guidance=None,
        return_dict=False,
        kv_cache_mode="extract",
        num_ref_tokens=references.shape[1],
    )
    still = ours.modulations(torch.zeros(1))
    kept = ours.reference_keys(references, still, *ours.rotary(theirs_of))
    layers = [*cache.double_block_caches, *cache.single_block_caches]
    for mine, layer in zip(kept[0], layers, strict=True):
        assert distance(mine, torch.stack((layer.k_ref[0], layer.v_ref[0]))) < 1e-5
    given = prepared(ours, sigma, text, torch.cat((text_ids, image_ids)))
    found = ours.velocity_beside(latents, *given, kept)
    assert distance(found, expected) < 1e-5
    assert kept.nbytes == ours.kept_bytes(references)
