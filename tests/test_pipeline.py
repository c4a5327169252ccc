"""The whole way on a small random model: what an image depends on, and what it does not."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from klein_cli.checkpoints.reader import ReadHandle
from klein_cli.checkpoints.resolve import resolve
from klein_cli.engines.native import NativeEngine
from klein_cli.errors import ModelError, ModelTooLargeError, OutOfMemoryError
from klein_cli.optimize.part import Part
from klein_cli.pipeline import Pipeline, Trace, choose
from klein_cli.recipe import Recipe
from klein_cli.sampling.schedule import sigmas
from klein_cli.settings import Settings
from klein_cli.text.encoder import PromptTokens, TextEncoder

CPU = Settings(device="cpu", dtype="float32")
RECIPE = Recipe(prompt="a cat", seed=1, width=64, height=48, steps=2, guidance=1.0, model="small")


def load(root: Path, settings: Settings = CPU) -> Pipeline:
    return Pipeline.load(resolve(str(root)), choose(settings))


@pytest.fixture(scope="module")
def pipeline(small_snapshot: Path) -> Pipeline:
    return load(small_snapshot)


@pytest.fixture(scope="module")
def base(small_base_snapshot: Path) -> Pipeline:
    return load(small_base_snapshot)


def draw(pipeline: Pipeline, **changes: Any) -> np.ndarray[Any, Any]:
    return pipeline.render([replace(RECIPE, **changes)])[0]


def test_a_picture_is_rows_of_bytes(pipeline: Pipeline) -> None:
    picture = draw(pipeline)
    assert picture.shape == (48, 64, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 20
    assert np.array_equal(picture, draw(pipeline))


@pytest.mark.parametrize(
    "changes", [{"prompt": "a dog"}, {"seed": 2}, {"steps": 3}, {"width": 48, "height": 64}]
)
def test_what_a_picture_depends_on(pipeline: Pipeline, changes: dict[str, Any]) -> None:
    changed = draw(pipeline, **changes)
    assert not np.array_equal(changed.flatten(), draw(pipeline).flatten())


def test_pictures_come_in_the_order_of_their_recipes(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal prompts are encoded once, and still each image gets its own prompt and seed."""
    prompts = ["a dog", "a cat", "a dog", "a much longer prompt, of a storm at sea", "a cat"]
    recipes = [replace(RECIPE, prompt=p, seed=s) for s, p in enumerate(prompts)]
    encoded: list[int] = []
    encode = TextEncoder.encode

    def counted(encoder: TextEncoder, tokens: PromptTokens) -> Tensor:
        encoded.append(len(tokens.lengths))
        return encode(encoder, tokens)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    together = pipeline.render(recipes)
    again = pipeline.render(recipes)
    assert encoded == [3]
    for picture, repeated, recipe in zip(together, again, recipes, strict=True):
        assert np.array_equal(picture, pipeline.render([recipe])[0])
        assert np.array_equal(picture, repeated)


def test_steps_are_told(pipeline: Pipeline) -> None:
    told: list[tuple[int, float]] = []
    trace = Trace()

    def callback(step: int, sigma: float, latents: Tensor) -> None:
        told.append((step, sigma))
        assert torch.equal(latents, trace.latents[-1])

    pipeline.render([RECIPE], callback=callback, trace=trace)
    levels = sigmas(3 * 4, 2).tolist()
    assert told == [(1, levels[1]), (2, 0.0)]


def test_time_is_kept_by_phase(pipeline: Pipeline) -> None:
    seconds = {"load": pipeline.loading_seconds}
    assert seconds["load"] > 0
    pipeline.render([replace(RECIPE, prompt="nobody has encoded this yet")], seconds=seconds)
    assert list(seconds) == ["load", "encode", "denoise", "decode"]
    assert seconds["load"] == pipeline.loading_seconds
    before = dict(seconds)
    pipeline.render([RECIPE], seconds=seconds)
    assert all(seconds[phase] > before[phase] for phase in ("encode", "denoise", "decode"))


def test_recipes_of_one_batch_share_their_shape(pipeline: Pipeline) -> None:
    for recipes in ([], [RECIPE, replace(RECIPE, steps=3)]):
        with pytest.raises(ValueError, match="differ in shape"):
            pipeline.render(recipes)


def test_guidance_counts_where_the_model_is_not_distilled(base: Pipeline) -> None:
    plain, guided = draw(base), draw(base, guidance=3.0)
    assert not np.array_equal(plain, guided)
    assert np.array_equal(guided, draw(base, guidance=3.0, negative_prompt=""))
    assert not np.array_equal(guided, draw(base, guidance=3.0, negative_prompt="blurry"))
    assert np.array_equal(plain, draw(base, negative_prompt="blurry"))


def test_guidance_counts_for_nothing_in_a_distilled_model(pipeline: Pipeline) -> None:
    changed = draw(pipeline, guidance=3.0, negative_prompt="blurry")
    assert np.array_equal(changed, draw(pipeline))


def test_guided_pictures_are_the_same_alone_and_in_a_batch(base: Pipeline) -> None:
    recipes = [
        replace(RECIPE, prompt=prompt, negative_prompt=negative, guidance=3.0)
        for prompt, negative in [("a cat", None), ("a dog " * 30, "blurry"), ("blurry", "a cat")]
    ]
    for picture, recipe in zip(base.render(recipes), recipes, strict=True):
        assert np.array_equal(picture, base.render([recipe])[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrower_dtypes_stay_close(pipeline: Pipeline, small_snapshot: Path, dtype: str) -> None:
    narrow = load(small_snapshot, replace(CPU, dtype=dtype))
    difference = np.abs(draw(narrow).astype(int) - draw(pipeline).astype(int))
    assert 0 < difference.mean() < 12


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("no room")]
)
def test_running_out_of_memory_has_a_hint(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    states: list[weakref.ref[Tensor]] = []
    encode = TextEncoder.encode

    def watched(encoder: TextEncoder, tokens: PromptTokens) -> Tensor:
        found = encode(encoder, tokens)
        states.append(weakref.ref(found))
        return found

    monkeypatch.setattr(TextEncoder, "encode", watched)
    pipeline.render([replace(RECIPE, prompt="a prompt of its own")])
    assert states[0]() is not None
    monkeypatch.setattr(NativeEngine, "velocity", fail)
    with pytest.raises(OutOfMemoryError, match="2 images of 64x48") as caught:
        pipeline.render([RECIPE, replace(RECIPE, seed=2)])
    assert states[0]() is None, "embeddings of the images before are still there"
    assert "--batch-size" in caught.value.hint
    assert caught.value.__context__ is None  # whose frames would keep the memory
    with pytest.raises(OutOfMemoryError, match="an image of 64x48") as caught:
        pipeline.render([RECIPE])
    assert "--size" in caught.value.hint


def test_a_model_that_proves_too_large_when_its_weights_come_is_no_pictures_fault(
    small_snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor would fewer images, smaller ones or tiles help."""
    pipeline = load(small_snapshot, CPU)
    arrival = ReadHandle(1, 0, None)
    arrival.finish(torch.OutOfMemoryError("CUDA out of memory"))
    part = Part(torch.nn.Module(), arrival)
    pipeline.parts["transformer"] = part

    def velocity(*_: Any) -> Any:
        with part.ready():
            raise AssertionError

    monkeypatch.setattr(NativeEngine, "velocity", velocity)
    for _ in range(2):
        with pytest.raises(ModelTooLargeError, match="does not fit into the memory of cpu"):
            pipeline.render([RECIPE])


def test_a_bug_is_not_called_out_of_memory(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(NativeEngine, "velocity", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        pipeline.render([RECIPE])


def test_loading_says_what_it_does_and_what_it_skips(small_snapshot: Path) -> None:
    told: list[str] = []
    loaded = Pipeline.load(resolve(str(small_snapshot)), choose(CPU), on_event=told.append)
    assert told == ["loading the text encoder", "loading the transformer and the VAE"]
    assert "model.norm.weight" in loaded.skipped_tensors
    told.clear()
    loaded.render([replace(RECIPE, steps=2)], on_event=told.append)
    assert told == ["reading the prompt", "step 1 of 2", "step 2 of 2", "decoding"]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def remove(path: Path, **_: object) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("change", "file", "changes", "words"),
    [
        (edit, "transformer/config.json", {"_class_name": "UNet"}, "describes UNet"),
        (edit, "transformer/config.json", {"num_layers": "two"}, "does not describe"),
        (edit, "transformer/config.json", {"num_layers": 1}, "has no place for"),
        (edit, "transformer/config.json", {"num_layers": 3}, "lacks transformer_blocks.2"),
        (edit, "transformer/config.json", {"joint_attention_dim": 64}, "joint_attention_dim is 64"),
        (edit, "transformer/config.json", {"guidance_embeds": True}, "guidance_embeds is True"),
        (edit, "vae/config.json", {"latent_channels": 16}, "in_channels is 128, not 64"),
        (edit, "vae/config.json", {"patch_size": [1, 1]}, "16 pixels a token"),
        (edit, "text_encoder/config.json", {"model_type": "x", "head_dim": 8}, "has shape"),
        (remove, "transformer/config.json", {}, "config.json is missing"),
        (remove, "vae/diffusion_pytorch_model.safetensors", {}, "holds no weights"),
        (remove, "tokenizer/tokenizer.json", {}, "tokenizer.json is missing"),
    ],
)
def test_a_snapshot_that_does_not_fit_together(
    small_snapshot: Path,
    tmp_path: Path,
    change: Callable[..., None],
    file: str,
    changes: dict[str, object],
    words: str,
) -> None:
    root = tmp_path / "model"
    shutil.copytree(small_snapshot, root)
    change(root / file, **changes)
    with pytest.raises(ModelError, match=words) as caught:
        load(root)
    assert caught.value.hint


def test_a_tokenizer_too_large_for_the_text_encoder(small_snapshot: Path, tmp_path: Path) -> None:
    from klein_cli.bench.random_files import write_tokenizer

    root = tmp_path / "model"
    shutil.copytree(small_snapshot, root)
    write_tokenizer(root / "tokenizer", ["a cat"], 600)
    with pytest.raises(ModelError, match="knows 600 tokens, its text encoder 512"):
        load(root)
