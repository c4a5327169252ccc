"""The edits that `tiny` learns, their words, and the judge of edited pictures."""

from __future__ import annotations

import random

import numpy
import pytest
import tiny_world as world
import torch
from numpy.typing import NDArray
from tiny_batches import Mixture, draw_kinds, kinds_of
from tiny_data import Prompts
from tiny_edit_buffer import EditBuffer
from tiny_edit_data import Pictures
from tiny_edit_judge import judge_edit
from tiny_edit_words import instruct, plainest
from tiny_edits import KINDS, Edit, Edits, Layout, as_edits, change, draw_edit
from tiny_models import VAE, deepened, encode_pictures, pack, places
from torch import Tensor

GRID = (16, 16)


def edits(count: int, seed: int, kind: str | None = None) -> list[Edit]:
    rng = random.Random(seed)
    return [draw_edit(rng, kind=kind, plain=True) for _ in range(count)]


def tensors(ones: list[Edit]) -> Edits:
    return as_edits(ones, [(True,) * 4] * len(ones))


def pixels(pictures: Tensor) -> NDArray[numpy.uint8]:
    return ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def drawn(ones: list[Edit], grid: tuple[int, int] = GRID) -> tuple[Tensor, Tensor, Layout]:
    """Pictures before and after, and where things lie."""
    rows, pictures = tensors(ones), Pictures(None, grid, None)
    layout = pictures.placed(rows)
    before = pictures.drawn(rows, layout, rows.colours, torch.ones(len(ones), 1, 1))
    return before, change(rows, layout, rows.colours, before), layout


def extents(ones: list[Edit], layout: Layout, grid: tuple[int, int] = GRID) -> list[float]:
    side = 16 * min(grid)
    return (layout.new_radii / world.SCALES[tensors(ones).new_shapes] / side).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [GRID, (12, 18)])
def test_the_judge_passes_the_right_picture_and_no_other(kind: str, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ones = edits(6, seed=1, kind=kind)
    before, after, layout = drawn(ones, grid)
    old, new, sizes = pixels(before), pixels(after), extents(ones, layout, grid)
    assert layout.fits.sum() >= 3
    for i in layout.fits.nonzero()[:, 0].tolist():
        assert judge_edit(old[i], new[i], ones[i], sizes[i]) == [], plainest(ones[i])
        assert judge_edit(old[i], old[i], ones[i], sizes[i]), "nothing was done"
        moved = numpy.roll(new[i], 4, 1)
        if ones[i].things_after:
            assert judge_edit(old[i], moved, ones[i], sizes[i]), "everything moved"


def test_the_judge_sees_a_change_that_was_not_asked_for() -> None:
    torch.manual_seed(0)
    circle, square = world.Thing("red", "circle"), world.Thing("blue", "square")
    one = Edit((circle, square), "white", "left", "recolour", 0, world.Thing("green", "star"))
    other = Edit((circle, square), "white", "left", "recolour", 1, world.Thing("green", "star"))
    before, after, layout = drawn([one])
    wrong = change(tensors([other]), layout, tensors([one]).colours, before)
    old, new, bad = (pixels(pictures)[0] for pictures in (before, after, wrong))
    assert judge_edit(old, new, one, 0.1) == []
    assert {"no blue square", "stray red"} <= set(judge_edit(old, bad, one, 0.1))
    tinted = numpy.where(new == 220, 190, new).astype(numpy.uint8)
    assert judge_edit(old, tinted, one, 0.1) == ["blue changed by 30"]


def test_what_is_not_named_keeps_every_pixel() -> None:
    """Far from the named thing an edit leaves even noise as it was."""
    torch.manual_seed(0)
    ones = edits(8, seed=2, kind="recolour") + edits(8, seed=3, kind="remove")
    before, _, layout = drawn(ones)
    rows = tensors(ones)
    noisy = before + 0.02 * torch.randn_like(before)
    after = change(rows, layout, rows.colours, noisy)
    every = torch.arange(len(ones))
    far = world.distances(
        rows.shapes[every, rows.named],
        layout.centres[every, rows.named],
        layout.radii[every, rows.named],
        256,
        256,
    )
    same = (after == noisy.clamp(-1, 1)).all(1) | (far < 7)
    assert same.float().mean() > 0.999


def test_an_added_thing_lies_beside_the_named_one_inside_and_off_the_others() -> None:
    torch.manual_seed(0)
    ones = edits(400, seed=4, kind="add")
    rows, (_, _, layout) = tensors(ones), drawn(ones, (4, 4))
    assert layout.fits.float().mean() > 0.7
    every = torch.arange(len(ones))
    size = world.REACH[rows.new_shapes] * layout.new_radii[:, None]
    x, y = layout.new_centres.unbind(1)
    inside = torch.stack((x - size[:, 0], y - size[:, 1], 64 - x - size[:, 0], 64 - y - size[:, 2]))
    assert inside[:, layout.fits].min() > 1
    offset = layout.new_centres - layout.centres[every, rows.named]
    ways = torch.tensor([[0.0, -1.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])[rows.beside]
    assert ((offset * ways).sum(1) > 0)[layout.fits].all()
    covered = torch.zeros(len(ones), 64, 64)
    for i in range(3):
        covered += world.cover(rows.shapes[:, i], layout.centres[:, i], layout.radii[:, i], 64, 64)
    new = world.cover(rows.new_shapes, layout.new_centres, layout.new_radii, 64, 64)
    assert (covered * new)[layout.fits].max() == 0


def test_held_out_edits_are_never_drawn_for_training() -> None:
    rng = random.Random(5)
    for one in (draw_edit(rng) for _ in range(1000)):
        assert not one.held_out
        if len(one.things) < 3:
            assert not one.source.held_out
    kept = [draw_edit(rng, held_out=True) for _ in range(50)]
    assert all(one.held_out for one in kept)


def test_words_name_what_must_be_known_and_say_which_colours_they_name() -> None:
    rng = random.Random(6)
    for _ in range(1500):
        one = draw_edit(rng)
        text, said = instruct(one, rng)
        text, thing = text.lower(), one.things[one.named]
        if one.kind == "turn":
            assert one.new.shape in text
        if one.kind in ("recolour", "background", "add") or not (one.keeps or one.kind == "remove"):
            assert one.new.colour in text
        same = [t for t in one.things if t.shape == thing.shape]
        if len(same) > 1 and one.kind != "background":
            assert thing.colour in text, text
        for number, other in enumerate(one.things):
            if other.colour in text and other.colour not in (one.new.colour, one.background):
                assert any(said[i] for i, t in enumerate(one.things) if t.colour == other.colour), (
                    number,
                    text,
                )


def test_a_buffer_gives_the_picture_before_and_learns_the_one_after() -> None:
    from diffusers import AutoencoderKLFlux2

    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(**VAE).eval()
    rows = tensors(edits(20, seed=7))
    prompts = Prompts(torch.zeros(20, 8, dtype=torch.int16), torch.full((20,), 8), rows, 0)
    second = torch.arange(20) % 2 == 1
    buffer = EditBuffer(vae, prompts, 4, (4, 4), 0.0, second=second)
    sample = buffer.sample(3)
    with torch.no_grad():
        expected = pack(encode_pictures(vae, buffer.pictures(sample, 3)))
    assert (sample["target"] - expected).norm() / expected.norm() < 0.02
    own = buffer.before[sample["chosen"]].flatten(0, 1)
    last = second[sample["rows"]].repeat_interleave(2)[:, None, None]
    given = sample["given"]
    assert given.shape == (6, 32, 128)
    assert torch.equal(torch.where(last, given[:, 16:], given[:, :16]), own)


def test_references_lie_at_10_and_20_on_the_grid_of_the_output() -> None:
    ids = places(3, (2, 3), 2)
    assert ids[:, 0].tolist() == [0] * 9 + [10] * 6 + [20] * 6
    assert torch.equal(ids[9:15, 1:], ids[3:9, 1:])
    assert torch.equal(ids[15:, 1:], ids[3:9, 1:])


@pytest.mark.parametrize("phase", ["match", "follow", "unroll"])
def test_every_kind_that_is_drawn_was_made_ready_and_all_share_a_loss(phase: str) -> None:
    """A kind that was not captured would run, slowly; two losses have other gradients."""
    rng, known = random.Random(8), set(kinds_of(phase))
    seen = set()
    for _ in range(3000):
        kinds = draw_kinds(phase, Mixture(), rng, 4)
        assert len({(kind.loss, kind.positions) for kind in kinds}) == 1
        seen.update(kinds)
    assert seen == known


def test_a_deeper_student_begins_as_the_same_function() -> None:
    """New blocks add nothing: their output matrix is zero, and the old ones keep their order."""
    key = "single_transformer_blocks.{}.attn.to_out.weight"
    other = "single_transformer_blocks.{}.attn.norm_q.weight"
    dit = {key.format(i): torch.full((2, 2), i + 1.0) for i in range(6)}
    dit |= {other.format(i): torch.full((2,), i + 1.0) for i in range(6)} | {"x": torch.ones(1)}
    made = deepened(dit, 8)
    assert [made[key.format(i)][0, 0].item() for i in range(8)] == [1, 2, 0, 3, 4, 0, 5, 6]
    assert [made[other.format(i)][0].item() for i in range(8)] == [1, 2, 2, 3, 4, 4, 5, 6]
    assert deepened(dit, 6).keys() == dit.keys()
