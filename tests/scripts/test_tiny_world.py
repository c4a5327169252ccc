"""The world that `tiny` learns, and the judge of its pictures, against each other."""

from __future__ import annotations

import random

import numpy
import pytest
import tiny_world as world
import torch
from numpy.typing import NDArray
from tiny_data import LatentBuffer, Prompts
from tiny_judge import judge
from tiny_models import VAE, pack
from tiny_words import canonical, describe

GRIDS = [(16, 16), (8, 8), (24, 16), (8, 24)]


def compositions(count: int, seed: int, pairs: float = 0.6) -> list[world.Composition]:
    rng = random.Random(seed)
    return [world.draw_composition(rng, pairs=pairs) for _ in range(count)]


def drawn(ones: list[world.Composition], grid: tuple[int, int]) -> NDArray[numpy.uint8]:
    noise = torch.randn(len(ones), 128, *grid)
    pictures = world.draw(world.as_scenes(ones), world.layout_means(noise), grid)
    pixels = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return pixels.numpy()


@pytest.mark.parametrize("grid", GRIDS)
def test_the_judge_passes_what_the_world_draws(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ones = compositions(12, seed=1)
    for one, picture in zip(ones, drawn(ones, grid), strict=True):
        assert judge(picture, one) == [], canonical(one)


def test_the_judge_sees_each_kind_of_mistake() -> None:
    torch.manual_seed(0)
    thing = world.Thing("red", "circle")
    right = world.Composition((thing, world.Thing("blue", "square")), "white", "above")
    picture = drawn([right], (16, 16))[0]
    mistakes = {
        "background not black": world.Composition(right.things, "black", "above"),
        "no green circle": world.Composition(
            (world.Thing("green", "circle"), right.things[1]), "white", "above"
        ),
        "star looks like a circle": world.Composition(
            (world.Thing("red", "star"), right.things[1]), "white", "above"
        ),
        "circle not large": world.Composition(
            (world.Thing("red", "circle", "large"), right.things[1]), "white", "above"
        ),
        "not below": world.Composition(right.things, "white", "below"),
        "stray blue": world.Composition((thing,), "white"),
    }
    for complaint, wanted in mistakes.items():
        assert any(found.startswith(complaint) for found in judge(picture, wanted)), complaint


def test_the_judge_sees_a_blurred_or_discoloured_picture() -> None:
    torch.manual_seed(0)
    one = world.Composition((world.Thing("red", "star"),), "white")
    picture = drawn([one], (16, 16))[0]
    tinted = numpy.where(picture == 220, 180, picture).astype(numpy.uint8)
    assert any("red off by" in found for found in judge(tinted, one))
    smooth = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    smooth = torch.nn.functional.avg_pool2d(smooth, 25, 1, 12, count_include_pad=False)
    blurred = smooth[0].permute(1, 2, 0).byte().numpy()
    assert judge(blurred, one)


def test_things_stay_inside_and_apart() -> None:
    torch.manual_seed(0)
    scenes = world.as_scenes(compositions(2000, seed=2, pairs=1.0))
    for height, width in ((16, 16), (8, 24), (24, 8)):
        u = torch.rand(2000, 2)
        centres, radii = world.lay_out(scenes, u, 16 * height, 16 * width)
        across, up, down = (world.REACH[scenes.shapes] * radii[..., None]).unbind(-1)
        left, right = centres[..., 0] - across, centres[..., 0] + across
        top, bottom = centres[..., 1] - up, centres[..., 1] + down
        assert min(left.min(), top.min()) > 2
        assert right.max() < 16 * width - 2
        assert bottom.max() < 16 * height - 2
        gaps = torch.stack(
            [
                top[:, 1] - bottom[:, 0],
                top[:, 0] - bottom[:, 1],
                left[:, 1] - right[:, 0],
                left[:, 0] - right[:, 1],
            ],
            -1,
        )
        assert gaps.gather(1, scenes.relations[:, None]).min() > 4


def test_the_layout_is_uniform_in_the_noise() -> None:
    torch.manual_seed(0)
    noise = torch.randn(20_000, 128, 4, 4)
    u = world.layout_uniforms(world.layout_means(noise), 16).sort(0).values
    even = (torch.arange(20_000) + 0.5) / 20_000
    assert (u - even[:, None]).abs().max() < 0.015


def test_held_out_compositions_are_never_drawn_for_training() -> None:
    assert not any(one.held_out for one in compositions(3000, seed=3))
    pairs = compositions(300, seed=4, pairs=1.0)
    swapped = [world.Composition(one.things[::-1], one.background, one.relation) for one in pairs]
    assert [one.held_out for one in pairs] == [one.held_out for one in swapped]
    assert 20 <= len(world.singles(held_out=True)) <= 40


def test_every_wording_names_what_the_picture_holds() -> None:
    rng = random.Random(5)
    for one in compositions(500, seed=6):
        text = describe(one, rng).lower()
        assert one.background in text
        assert all(thing.colour in text and thing.shape in text for thing in one.things)


def test_a_buffer_pairs_fresh_noise_with_the_latents_it_decides() -> None:
    from diffusers import AutoencoderKLFlux2
    from tiny_models import encode_pictures

    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(**VAE).eval()
    scenes = world.as_scenes(compositions(20, seed=7))
    prompts = Prompts(torch.zeros(20, 8, dtype=torch.int16), torch.full((20,), 8), scenes, 0)
    buffer = LatentBuffer(vae, prompts, 4, (8, 8), stars=0.0)
    sample = buffer.sample(3)
    rows, latents = sample["rows"], sample["target"]
    means = world.layout_means(sample["noise"].transpose(1, 2).unflatten(2, (8, 8)))
    pictures = world.draw(scenes[rows.repeat_interleave(2)], means, (8, 8))
    with torch.no_grad():
        expected = pack(encode_pictures(vae, pictures))
    assert (latents - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize("stars", [0.0, 0.6, 1.0])
def test_so_many_prompts_hold_a_star(stars: float) -> None:
    torch.manual_seed(0)
    scenes = world.as_scenes(compositions(400, seed=8))
    prompts = Prompts(torch.zeros(400, 8, dtype=torch.int16), torch.full((400,), 8), scenes, 0)
    star = (scenes.shapes == world.SHAPES.index("star")).any(1)
    by_chance = star.float().mean().item()
    share = star[prompts.pick(4000, stars)].float().mean().item()
    assert share == pytest.approx(stars + (1 - stars) * by_chance, abs=0.03)
