"""The sides draw the same image, and a tuned pipeline leaves the plain one as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from klein_cli.bench.contender import Klein
from klein_cli.bench.measure import Memory
from klein_cli.bench.peers import Diffusers, load_peers, tune
from klein_cli.bench.references import references_of_size
from klein_cli.checkpoints.resolve import resolve
from klein_cli.engines.oracle import load_official
from klein_cli.images.store import ImageStore
from klein_cli.output.reading import read_record
from klein_cli.pipeline import choose
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings

CPU = torch.device("cpu")
SETTINGS = choose(Settings(device="cpu"))
RECIPE = Recipe(prompt="a cat", seed=3, width=64, height=48, steps=2, guidance=1.0, model="small")


def ignore(event: str) -> None:
    pass


@pytest.fixture(scope="module")
def plain(small_snapshot: Path) -> Any:
    return load_official(small_snapshot, SETTINGS)


@pytest.fixture(scope="module")
def klein(small_snapshot: Path) -> Klein:
    return Klein.load(resolve(str(small_snapshot)), SETTINGS, ignore)


def side(pipe: Any) -> Diffusers:
    return Diffusers("diffusers", pipe, SETTINGS, Memory(CPU))


def apart(one: Any, other: Any) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


def test_both_draw_the_same_picture(klein: Klein, plain: Any) -> None:
    ours, theirs = klein.draw(RECIPE), side(plain).draw_as_klein(RECIPE)
    assert ours.size == (64, 48)
    assert apart(ours, theirs) <= 1
    assert np.asarray(ours).std() > 20


def test_both_draw_the_same_edit(klein: Klein, plain: Any) -> None:
    images = ImageStore()
    recipe = replace(RECIPE, references=references_of_size(2, 64, 80, images))
    ours = Klein(klein._pipeline, klein.memory, images)
    theirs = Diffusers("diffusers", plain, SETTINGS, Memory(CPU), images)
    assert apart(ours.draw(recipe), theirs.draw_as_klein(recipe)) <= 1
    assert apart(ours.draw(recipe), ours.draw(RECIPE)) > 1
    assert list(theirs.stages(recipe)) == list(ours.stages(recipe))


def test_the_png_that_is_timed_is_the_one_that_a_run_writes(klein: Klein, tmp_path: Path) -> None:
    """With the whole record: the bytes and the time of a shorter one would not be a run's."""
    path = tmp_path / "a.png"
    path.write_bytes(klein.png(klein.draw(RECIPE), RECIPE))
    record = read_record(path)
    assert (record.recipe, record.settings) == (RECIPE, SETTINGS)
    assert len(record.sigmas) == RECIPE.steps + 1
    assert record.weights is not None


def test_both_write_png(klein: Klein, plain: Any) -> None:
    picture = klein.draw(RECIPE)
    for one in (klein, side(plain)):
        assert one.png(picture, RECIPE).startswith(b"\x89PNG")


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_stages_are_parts_of_a_picture(
    small_base_snapshot: Path, guidance: float, plain: Any, klein: Klein
) -> None:
    """Guidance encodes twice: denoising begins after the second."""
    pipe = load_official(small_base_snapshot, SETTINGS) if guidance > 1 else plain
    asked = replace(RECIPE, guidance=guidance)
    for one in (side(pipe), klein):
        spent = one.stages(replace(asked, prompt=f"a cat with {guidance} lives"))
        assert list(spent) == ["encode", "denoise", "decode"]
        assert all(seconds > 0 for seconds in spent.values())
    assert "encode_prompt" not in vars(pipe)


@pytest.mark.lengthy
def test_tuning_makes_a_second_pipeline(plain: Any) -> None:
    """Compiled by dynamo alone, whose graphs must be whole; each shape by itself, in one graph a
    kind of block and one for the decoder."""
    from torch._dynamo.utils import counters

    before = np.asarray(side(plain).draw(RECIPE))
    counters.clear()
    tuned = tune(plain, cudnn=False, compile_vae=True, backend="eager")
    drawn = side(tuned).draw(RECIPE)
    assert counters["stats"]["unique_graphs"] == 3
    for width in (32, 96):
        side(tuned).draw(replace(RECIPE, width=width))
    assert counters["stats"]["unique_graphs"] == 9
    assert apart(drawn, before) <= 2
    assert tuned.text_encoder is plain.text_encoder
    assert tuned.transformer is not plain.transformer
    assert tuned.transformer.transformer_blocks[0].attn.fused_projections
    assert not plain.transformer.transformer_blocks[0].attn.fused_projections
    assert tuned.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert plain.vae.decoder.conv_in.weight.is_contiguous()
    assert np.array_equal(np.asarray(side(plain).draw(RECIPE)), before)


def test_cudnn_attention_is_the_tuned_pipelines_alone(plain: Any) -> None:
    """diffusers keeps the last backend set for every transformer that names none."""
    tuned = tune(plain, cudnn=True, compile_vae=False, backend="eager")
    backends = [pipe.transformer.transformer_blocks[0].attn.processor for pipe in (tuned, plain)]
    assert [backend._attention_backend.value for backend in backends] == ["_native_cudnn", "native"]
    side(plain).draw(RECIPE)


def test_on_a_cpu_there_is_no_tuned_one(small_snapshot: Path) -> None:
    peers = load_peers(small_snapshot, SETTINGS, compile_vae=False, on_event=ignore)
    assert [peer.name for peer in peers] == ["diffusers"]
