"""The work of an image, counted from configurations, is what torch counts while drawing one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from klein_cli.bench.flops import (
    Model,
    dit_step,
    encoder,
    flops,
    reference_pass,
    vae_decoder,
    vae_encoder,
)
from klein_cli.bench.random_weights import SIZES, part_configs
from klein_cli.checkpoints.resolve import resolve
from klein_cli.models.attention import AttentionLengths, EagerAttention
from klein_cli.models.flux2 import Flux2Config, Flux2Transformer
from klein_cli.models.qwen3 import Qwen3Config, Qwen3Model
from klein_cli.models.vae import VaeConfig
from klein_cli.models.vae_encoder import VaeEncoder

SMALL = part_configs(SIZES["small"])


@pytest.fixture(scope="module")
def four_b() -> Model:
    tables = part_configs(SIZES["4b"])
    return Model(
        dit=Flux2Config.from_json(tables["transformer"]),
        encoder=Qwen3Config.from_json(tables["text_encoder"]),
        vae=VaeConfig.from_json(tables["vae"]),
        encoder_layers=27,
    )


def counted(module: Any, *args: Any, **kwargs: Any) -> int:
    """The operations of a call, all its attention as plain matrix products."""
    with (
        torch.inference_mode(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        module(*args, **kwargs)
    return counter.get_total_flops()


@pytest.mark.parametrize("tokens", [4, 24])
def test_a_step_of_the_dit(tokens: int) -> None:
    import diffusers

    dit = diffusers.Flux2Transformer2DModel.from_config(SMALL["transformer"])
    found = counted(
        dit,
        hidden_states=torch.randn(1, tokens, 128),
        encoder_hidden_states=torch.randn(1, 512, 192),
        timestep=torch.ones(1),
        img_ids=torch.zeros(tokens, 4),
        txt_ids=torch.zeros(512, 4),
        guidance=None,
    )
    assert found == sum(dit_step(Flux2Config.from_json(SMALL["transformer"]), tokens))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (64, 96)])
def test_the_vae(width: int, height: int) -> None:
    import diffusers

    vae = diffusers.AutoencoderKLFlux2.from_config(SMALL["vae"])
    latents = torch.randn(1, 32, height // 8, width // 8)
    enlarging = [
        module for name, module in vae.decoder.named_modules() if name.endswith("upsamplers.0.conv")
    ]
    given: list[tuple[Any, Tensor]] = []
    for module in enlarging:
        module.register_forward_pre_hook(lambda module, inputs: given.append((module, inputs[0])))
    found = counted(vae.decode, latents)
    nine_products = sum(counted(module.forward, x) for module, x in given)
    assert len(given) == 3
    # Of the nine, four are left for each pixel.
    found -= nine_products * 5 // 9
    assert found == vae_decoder(VaeConfig.from_json(SMALL["vae"]), width, height)


def test_the_text_encoder() -> None:
    config = Qwen3Config.from_json(SMALL["text_encoder"])
    model = Qwen3Model(config, (9, 18, 27), EagerAttention())
    ids = torch.zeros(1, 512, dtype=torch.int64)
    lengths = AttentionLengths.of((20,), 512, torch.device("cpu"))
    assert counted(model, ids, lengths) == encoder(config, 27)


@pytest.mark.parametrize("kv_cache", [False, True])
def test_references(kv_cache: bool) -> None:
    """Of each step, and of what is done once."""
    config = Flux2Config.from_json(SMALL["transformer"])
    dit = Flux2Transformer(config).requires_grad_(False)
    references, modulations = torch.randn(1, 10, 128), dit.modulations(torch.ones(1))
    both = dit.rotary(torch.zeros(512 + 6 + (0 if kv_cache else 10), 4))
    given = torch.randn(1, 6, 128), torch.randn(1, 512, config.width), modulations, *both
    once = 0
    if kv_cache:
        still = modulations, *dit.rotary(torch.zeros(10, 4))
        once = counted(dit.reference_keys, references, *still)
        kept = torch.zeros(1, 4, 2, 10, 2, 32)
        step = counted(dit.velocity_beside, *given, kept)
        assert once == reference_pass(config, 10)
    else:
        step = counted(dit.velocity, *given, references)
    prepared = counted(dit.context_embedder, torch.randn(1, 512, 192))
    prepared += counted(dit.modulations, torch.ones(1))
    assert step + prepared == sum(dit_step(config, 6, 10, kv_cache=kv_cache))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (64, 96)])
def test_the_vae_encoder(width: int, height: int) -> None:
    vae = VaeEncoder(VaeConfig.from_json(SMALL["vae"]))
    found = counted(vae, torch.randn(1, 3, height, width))
    assert found == vae_encoder(VaeConfig.from_json(SMALL["vae"]), width, height)


def test_an_edit_of_the_real_model(four_b: Model) -> None:
    """Two references: what they cost each step, and once."""
    plain, edit = (
        flops(four_b, 1024, 1024, 4, references=given) for given in ((), ((1024, 1024),) * 2)
    )
    assert edit.denoise / plain.denoise == pytest.approx(3.7, abs=0.05)
    assert edit.references / 1e12 == pytest.approx(2 * 4.89, abs=0.02)
    assert (edit.encode, edit.decode, plain.references) == (plain.encode, plain.decode, 0)


def test_a_picture_of_the_real_model(four_b: Model) -> None:
    """The figures that the limit of an H200 was worked out with by hand."""
    picture = flops(four_b, 1024, 1024, 4)
    parts = (picture.dit_linears, picture.dit_attention, picture.encode, picture.decode)
    assert [round(part / 1e12, 1) for part in parts] == [113.2, 26.1, 2.9, 8.9]
    assert picture.total == sum(parts)
    assert four_b.tokens(1024, 1024) == 4608
    assert four_b.widest_linear == (3072, 27648)


def test_guidance_predicts_and_encodes_twice(four_b: Model) -> None:
    once, twice = flops(four_b, 512, 256, 3), flops(four_b, 512, 256, 3, guided=True)
    assert twice.denoise == 2 * once.denoise
    assert twice.encode == 2 * once.encode
    assert twice.decode == once.decode


def test_a_snapshot_says_its_own_sizes(small_snapshot: Path) -> None:
    model = Model.of(resolve(str(small_snapshot)))
    assert model.dit == Flux2Config.from_json(SMALL["transformer"])
    assert model.encoder_layers == 27
    assert flops(model, 64, 64, 4).denoise == 4 * sum(dit_step(model.dit, 16))
