"""What recipes' images become: encoded once, conditioned on, and left alone."""

from __future__ import annotations

import io
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_models import images, sharpened
from PIL import Image
from torch import Tensor

from klein_cli.checkpoints.resolve import resolve
from klein_cli.engines.native import NativeEngine
from klein_cli.engines.references import Remembered
from klein_cli.errors import ModelError, OutOfMemoryError, UsageError
from klein_cli.images.references import processed_size
from klein_cli.images.store import ImageStore
from klein_cli.models.flux2 import Flux2Transformer
from klein_cli.pipeline import Pipeline, choose
from klein_cli.recipe import Mask, Recipe, Reference
from klein_cli.sampling.schedule import sigmas
from klein_cli.settings import Settings

STORE = ImageStore()


def put(image: Image.Image) -> Reference:
    file = io.BytesIO()
    image.save(file, "PNG")
    found = STORE.add(file.getvalue(), name="given.png")
    width, height = processed_size(found.width, found.height)
    return Reference(sha256=found.sha256, name=found.name, width=width, height=height)


FIRST, SECOND = map(put, images())
RECIPE = Recipe(
    prompt="a cat",
    seed=1,
    width=48,
    height=32,
    steps=2,
    guidance=1.0,
    model="edit",
    references=(FIRST, SECOND),
)


def load(root: Path, **settings: str) -> Pipeline:
    chosen = Settings(device="cpu", dtype="float32", **settings)
    return Pipeline.load(resolve(str(root)), choose(chosen))


@pytest.fixture
def pipe(edit_snapshot: Path) -> Pipeline:
    return load(edit_snapshot)


@pytest.fixture(scope="module")
def kv_snapshot(small_snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharpened(small_snapshot, tmp_path_factory.mktemp("kv") / "kv", kv_cache=True)


def draw(pipe: Pipeline, **changes: Any) -> np.ndarray[Any, Any]:
    return pipe.render([replace(RECIPE, **changes)], images=STORE)[0]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often images were encoded, and keys of references made."""
    counted = Counter[str]()

    def count(kind: type, name: str) -> None:
        function: Callable[..., Any] = getattr(kind, name)

        def call(*given: Any) -> Any:
            counted[name] += 1
            return function(*given)

        monkeypatch.setattr(kind, name, call)

    count(NativeEngine, "encode")
    count(Flux2Transformer, "reference_keys")
    return counted


def test_an_image_is_encoded_once(pipe: Pipeline, counts: Counter[str]) -> None:
    """For all prompts, seeds and sizes, alone and beside others."""
    draw(pipe, seed=2)
    draw(pipe, prompt="a dog", references=(SECOND,))
    draw(pipe, width=32, references=(SECOND, FIRST))
    pipe.render([RECIPE, replace(RECIPE, seed=5)], images=STORE)
    assert counts["encode"] == 2


def test_what_one_run_left_does_not_change_the_next(pipe: Pipeline, edit_snapshot: Path) -> None:
    """The same file as a reference, as the source of a mask, and as that of another box."""
    orders = [{"references": (FIRST,)}, {"references": (SECOND,)}]
    for box in ((0, 0, 150, 112), (16, 16, 144, 112)):
        size = {"width": (box[2] - box[0]) // 16 * 16, "height": (box[3] - box[1]) // 16 * 16}
        mask = Mask(box=box, sha256=white().sha256, name="white.png", keep=False)
        orders.append({"references": (replace(FIRST, **size),), "mask": mask, **size})
    for order in orders:
        assert np.array_equal(draw(pipe, **order), draw(load(edit_snapshot), **order))


def white() -> Reference:
    ground = np.zeros((112, 150), np.uint8)
    ground[40:70, 50:90] = 255
    return put(Image.fromarray(ground))


def test_words_alone_read_no_encoder(pipe: Pipeline) -> None:
    draw(pipe, references=())
    assert "_encoder" not in vars(pipe._engine)
    draw(pipe)
    assert "_encoder" in vars(pipe._engine)


def test_a_vae_without_an_encoder_still_draws(small_snapshot: Path, tmp_path: Path) -> None:
    """As that of the small decoder's file. It is said which file lacks what."""
    from safetensors.torch import load_file, save_file

    root = sharpened(small_snapshot, tmp_path / "small")
    (path,) = (root / "vae").glob("*.safetensors")
    encoding = ("encoder.", "quant_conv.")
    kept = {k: x for k, x in load_file(path).items() if not k.startswith(encoding)}
    save_file(kept, path)
    pipe = load(root)
    draw(pipe, references=())
    with pytest.raises(ModelError, match="vae has no encoder"):
        draw(pipe)


def test_a_file_that_is_not_what_the_recipe_says_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(UsageError, match=r"given\.png at 128x112, and it becomes 144x112"):
        draw(pipe, references=(replace(FIRST, width=128),))


def test_images_that_are_not_there_are_no_users_mistake(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="recipes name images"):
        pipe.render([RECIPE])


@pytest.mark.parametrize("engine", ["native", "diffusers"])
def test_references_are_not_stepped(
    edit_snapshot: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay what they are to the bit; the velocity is of the output's tokens alone, at the
    levels of an image of words, from its noise.
    """
    pipe = load(edit_snapshot, engine=engine)
    velocity = type(pipe._engine).velocity
    seen: list[tuple[Tensor, float, Tensor]] = []

    def watched(own: Any, latents: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        out: Tensor = velocity(own, latents, sigma, condition)
        assert out.shape == latents.shape == (1, 2 * 3, 128)
        seen.append((latents, float(sigma), condition.references.clone()))
        return out

    monkeypatch.setattr(type(pipe._engine), "velocity", watched)
    draw(pipe)
    (noise, first, before), (_, second, after) = seen
    assert [first, second, 0.0] == sigmas(2 * 3, 2).tolist()
    assert torch.equal(noise, pipe.noise([1], width=48, height=32).packed)
    assert torch.equal(before, after)


def test_swapped_references_are_another_image(pipe: Pipeline) -> None:
    assert not np.array_equal(draw(pipe), draw(pipe, references=(SECOND, FIRST)))


def test_keys_are_made_once_for_the_same_references_in_their_order(
    kv_snapshot: Path, counts: Counter[str]
) -> None:
    """Whatever the prompt, the seed, the steps and the size; (B, A) are not (A, B)."""
    pipe = load(kv_snapshot)
    draw(pipe)
    draw(pipe, prompt="a dog", seed=9, width=64, steps=1)
    assert counts["reference_keys"] == 1
    swapped = draw(pipe, references=(SECOND, FIRST))
    assert counts["reference_keys"] == 2
    assert np.array_equal(swapped, draw(load(kv_snapshot), references=(SECOND, FIRST)))


def test_rows_of_a_model_that_keeps_references_are_the_same_alone(kv_snapshot: Path) -> None:
    pipe = load(kv_snapshot)
    other = put(Image.fromarray(255 - np.asarray(images()[0])))
    recipes = [
        replace(RECIPE, seed=seed, references=(reference,))
        for seed, reference in ((1, FIRST), (2, FIRST), (1, other))
    ]
    for batch in (recipes[:2], recipes):
        together = pipe.render(batch, images=STORE)
        for recipe, image in zip(batch, together, strict=True):
            assert np.array_equal(image, pipe.render([recipe], images=STORE)[0])


def test_the_diffusers_engine_keeps_no_keys(kv_snapshot: Path) -> None:
    pipe = load(kv_snapshot, engine="diffusers")
    draw(pipe, references=())
    with pytest.raises(UsageError, match="the diffusers engine does not"):
        draw(pipe)


@pytest.mark.parametrize("keep", [True, False])
def test_outside_the_mask_the_source_stays(pipe: Pipeline, keep: bool) -> None:
    """Of any size, to the bit; inside, what the model made of it."""
    mask = Mask(box=(0, 0, 150, 112), sha256=white().sha256, name="white.png", keep=keep)
    image = draw(pipe, references=(FIRST,), width=FIRST.width, height=FIRST.height, mask=mask)
    source = np.asarray(images()[0])
    hole = STORE.mask(white().sha256).white
    assert image.shape == source.shape
    assert np.array_equal(image[~hole], source[~hole]) == keep
    assert not np.array_equal(image[hole], source[hole])


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    made: list[str] = []

    def make(name: str) -> Callable[[], Tensor]:
        def now() -> Tensor:
            made.append(name)
            return torch.zeros(10, dtype=torch.uint8)

        return now

    remembered = Remembered(25)
    for name in ("a", "b", "a", "c", "a", "c", "b"):
        remembered.get(name, make(name))
    assert made == ["a", "b", "c", "b"]
    large = Remembered(5)
    for _ in range(2):
        large.get("a", make("large"))
    assert made.count("large") == 1


def test_an_edit_that_does_not_fit_gives_back_what_was_remembered(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the hint knows what else there is to make smaller."""
    draw(pipe)
    (latents,) = map(weakref.ref, list(pipe._references._referred._made.values()))

    def fail(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(NativeEngine, "velocity", fail)
    with pytest.raises(OutOfMemoryError, match="an image of 48x32") as caught:
        draw(pipe)
    assert "--size, or fewer or smaller images" in caught.value.hint
    assert latents() is None


def test_a_mask_on_a_model_that_keeps_references(kv_snapshot: Path, counts: Counter[str]) -> None:
    """The source is kept like any other, and twice painted once."""
    pipe = load(kv_snapshot)
    mask = Mask(box=(0, 0, 150, 112), sha256=white().sha256, name="white.png")
    size = {"width": FIRST.width, "height": FIRST.height}
    order = {"references": (FIRST, SECOND), "mask": mask, **size}
    images_of_two = [draw(pipe, seed=seed, **order) for seed in (1, 2)]
    assert (counts["encode"], counts["reference_keys"]) == (2, 1)
    hole = STORE.mask(white().sha256).white
    assert not np.array_equal(*images_of_two)
    for image in images_of_two:
        assert np.array_equal(image[~hole], np.asarray(images()[0])[~hole])
