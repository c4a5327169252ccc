"""Acceptance: edits of a random snapshot are those that diffusers' pipelines make.

The snapshot is made to show mistakes (`edit_models`): references swapped, or a second one dropped,
move the latents by .05 of their norm; what may differ is 1e-5.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_models import images as drawn
from edit_models import sharpened
from PIL import Image
from small_models import distance
from torch import Tensor

from klein_cli.checkpoints.resolve import resolve
from klein_cli.cli.app import main
from klein_cli.device.choose import no_tf32
from klein_cli.images.masks import Box
from klein_cli.images.references import processed_size
from klein_cli.images.store import ImageStore
from klein_cli.pipeline import Pipeline, Trace, choose
from klein_cli.recipe import Mask, Recipe, Reference
from klein_cli.settings import Settings

STORE = ImageStore()
SIZE = (144, 112)
STEPS = 2
PROMPT = "a cat"


def put(image: Image.Image, name: str) -> Reference:
    """An image in the store, as a recipe names it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    found = STORE.add(file.getvalue(), name=name)
    width, height = processed_size(found.width, found.height)
    return Reference(sha256=found.sha256, name=name, width=width, height=height)


IMAGES = drawn()
FIRST, SECOND = REFERENCES = tuple(map(put, IMAGES, ("first.png", "second.png")))
RECIPE = Recipe(
    prompt=PROMPT,
    seed=7,
    width=SIZE[0],
    height=SIZE[1],
    steps=STEPS,
    guidance=1.0,
    model="edit",
    references=REFERENCES,
)


def pipeline(root: Path, engine: str = "native") -> Pipeline:
    return Pipeline.load(
        resolve(str(root)), choose(Settings(device="cpu", dtype="float32", engine=engine))
    )


def official_of(root: Path) -> Any:
    from diffusers import Flux2KleinPipeline

    pipe = Flux2KleinPipeline.from_pretrained(root, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours(edit_snapshot: Path) -> Pipeline:
    return pipeline(edit_snapshot)


@pytest.fixture(scope="module")
def official(edit_snapshot: Path) -> Any:
    return official_of(edit_snapshot)


def edited(pipe: Pipeline, recipes: Sequence[Recipe]) -> tuple[list[np.ndarray[Any, Any]], Tensor]:
    """The images of recipes, and their last latents (B, N, C)."""
    trace = Trace()
    made = pipe.render(recipes, images=STORE, trace=trace)
    return made, trace.latents[-1]


def wanted(pipe: Any, recipe: Recipe, **more: Any) -> tuple[np.ndarray[Any, Any], Tensor]:
    """What one of diffusers' pipelines makes of a recipe: its image and its last latents."""
    last: list[Tensor] = []

    def keep(pipe: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        last.append(tensors["latents"])
        return {}

    image = pipe(
        prompt=recipe.prompt,
        num_inference_steps=recipe.steps,
        generator=torch.Generator().manual_seed(recipe.seed),
        callback_on_step_end=keep,
        **more,
    ).images[0]
    return np.asarray(image), last[-1]


def editing(pipe: Any, recipe: Recipe, given: Sequence[Image.Image], **more: Any) -> Any:
    size = {"width": recipe.width, "height": recipe.height}
    return wanted(pipe, recipe, image=list(given) or None, **size, **more)


def assert_same(found: Any, expected: Any, *, row: int = 0) -> None:
    (made, latents), (image, last) = found, expected
    assert distance(latents[row], last[0]) < 1e-5
    assert image.std() > 20
    assert np.abs(made[row].astype(int) - image).max() <= 1


ASKED = {
    "none": (),
    "one": (FIRST,),
    "two": (FIRST, SECOND),
    "swapped": (SECOND, FIRST),
    "the same twice": (FIRST, FIRST),
}


@pytest.mark.parametrize("asked", ASKED)
def test_references(ours: Pipeline, official: Any, asked: str) -> None:
    references = ASKED[asked]
    recipe = replace(RECIPE, references=references)
    given = [IMAGES[REFERENCES.index(each)] for each in references]
    expected = editing(official, recipe, given, guidance_scale=1.0)
    assert_same(edited(ours, [recipe]), expected)


def test_the_diffusers_engine(edit_snapshot: Path, official: Any) -> None:
    found = edited(pipeline(edit_snapshot, "diffusers"), [RECIPE])
    assert_same(found, editing(official, RECIPE, IMAGES, guidance_scale=1.0))


@pytest.mark.parametrize("engine", ["native", "diffusers"])
def test_rows_of_one_batch(edit_snapshot: Path, official: Any, engine: str) -> None:
    """Of one reference or of each its own, with the bits of each alone."""
    pipe = pipeline(edit_snapshot, engine)
    other = put(Image.fromarray(255 - np.asarray(IMAGES[0])), "other.png")
    recipes = [
        replace(RECIPE, references=(reference,), seed=seed, prompt=prompt)
        for seed, prompt, reference in (
            (7, PROMPT, FIRST),
            (8, "a dog " * 30, FIRST),
            (7, PROMPT, other),
        )
    ]
    for batch in (recipes[:2], recipes):
        images, latents = edited(pipe, batch)
        for row, recipe in enumerate(batch):
            alone, its = edited(pipe, [recipe])
            assert np.array_equal(images[row], alone[0])
            assert torch.equal(latents[row], its[0])
    expected = editing(official, recipes[1], IMAGES[:1], guidance_scale=1.0)
    assert_same((images, latents), expected, row=1)
    assert distance(latents[2], latents[0]) > 1e-3


def test_guidance(small_base_snapshot: Path, tmp_path: Path) -> None:
    """References are in both branches."""
    root = sharpened(small_base_snapshot, tmp_path / "base")
    recipe = replace(RECIPE, guidance=3.5)
    expected = editing(official_of(root), recipe, IMAGES, guidance_scale=3.5)
    assert_same(edited(pipeline(root), [recipe]), expected)


SOURCE = IMAGES[0].resize(SIZE)
HOLE, STROKE = (32, 16, 96, 64), (40, 17, 41, 90)
"""Of masks, in pixels: along the edges of tokens, and one pixel wide."""


def masked_recipe(source: Image.Image, white: Box, box: Box, *, keep: bool = False) -> Recipe:
    """A source of which `white` is painted, seen in a `box`."""
    ground = Image.new("L", source.size)
    ground.paste(255, white)
    mask = Mask(sha256=put(ground, "mask.png").sha256, name="mask.png", box=box, keep=keep)
    width, height = (box[2] - box[0]) // 16 * 16, (box[3] - box[1]) // 16 * 16
    given = replace(put(source, "source.png"), width=width, height=height)
    return replace(RECIPE, references=(given,), mask=mask, width=width, height=height)


def painted(pipe: Any, recipe: Recipe, source: Image.Image, white: Box, **more: Any) -> Any:
    """diffusers' own, of a mask that covers every token in which a pixel is white."""
    from diffusers import Flux2KleinInpaintPipeline

    painting = Flux2KleinInpaintPipeline(**pipe.components, is_distilled=True)
    painting.set_progress_bar_config(disable=True)
    left, top, right, bottom = white
    tokens = (left // 16 * 16, top // 16 * 16, -(-right // 16) * 16, -(-bottom // 16) * 16)
    mask = Image.new("L", source.size)
    mask.paste(255, tokens)
    options = {"image": source, "mask_image": mask, "strength": 1.0, "guidance_scale": 1.0}
    return wanted(painting, recipe, **options, **more)


@pytest.mark.parametrize("white", [HOLE, STROKE], ids=["a hole", "a thin stroke"])
@pytest.mark.parametrize("more", [(), (SECOND,)], ids=["alone", "with a reference"])
def test_masks(ours: Pipeline, official: Any, more: tuple[Reference, ...], white: Box) -> None:
    """The whole image, not kept: the VAE's round trip outside the hole as well."""
    recipe = masked_recipe(SOURCE, white, (0, 0, *SIZE))
    recipe = replace(recipe, references=(*recipe.references, *more))
    reference = IMAGES[1] if more else None
    expected = painted(official, recipe, SOURCE, white, image_reference=reference)
    assert_same(edited(ours, [recipe]), expected)


@pytest.mark.parametrize("keep", [False, True])
def test_a_part_of_a_larger_source(ours: Pipeline, official: Any, keep: bool) -> None:
    """What diffusers makes of the part, laid into the source; but for the mask's own pixels it
    stays as it was.
    """
    source = IMAGES[0].resize((201, 133))
    box, white = (32, 16, 176, 128), (64, 48, 112, 96)
    recipe = masked_recipe(source, white, box, keep=keep)
    part = source.crop(box)
    inside = (white[0] - box[0], white[1] - box[1], white[2] - box[0], white[3] - box[1])
    image, _ = painted(official, recipe, part, inside)
    expected = source.copy()
    if keep:
        expected.paste(Image.fromarray(image).crop(inside), white[:2])
    else:
        expected.paste(Image.fromarray(image), box[:2])
    (made,), _ = edited(ours, [recipe])
    apart = np.abs(made.astype(int) - np.asarray(expected))
    assert apart.max() <= 1
    if keep:
        apart[white[1] : white[3], white[0] : white[2]] = 0
        assert not apart.any()


def test_masks_in_a_batch(ours: Pipeline) -> None:
    """Each row its own: sources, masks and seeds."""
    other = Image.fromarray(255 - np.asarray(SOURCE))
    recipes = [
        replace(masked_recipe(source, white, (0, 0, *SIZE)), seed=seed)
        for seed, source, white in ((7, SOURCE, HOLE), (8, SOURCE, STROKE), (7, other, HOLE))
    ]
    together, _ = edited(ours, recipes)
    for recipe, image in zip(recipes, together, strict=True):
        assert np.array_equal(image, edited(ours, [recipe])[0][0])


@pytest.fixture(scope="module")
def keeping(small_snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("keeping")
    return pipeline(sharpened(small_snapshot, folder / "kv", kv_cache=True))


@pytest.mark.parametrize("asked", ["none", "one", "two", "swapped"])
def test_a_model_that_keeps_references(keeping: Pipeline, official: Any, asked: str) -> None:
    from diffusers import Flux2KleinKVPipeline

    caching = Flux2KleinKVPipeline(**official.components)
    caching.set_progress_bar_config(disable=True)
    references = ASKED[asked]
    recipe = replace(RECIPE, references=references)
    given = [IMAGES[REFERENCES.index(each)] for each in references]
    assert_same(edited(keeping, [recipe]), editing(caching, recipe, given))


def test_a_phones_photo_at_the_shell(edit_snapshot: Path, official: Any, tmp_path: Path) -> None:
    """Over a megapixel, on its side, as JPEG; beside it a small one, in the order given."""
    from diffusers.utils import load_image

    exif = Image.Exif()
    exif[0x0112] = 6
    photo = tmp_path / "photo.jpg"
    IMAGES[0].resize((1500, 1111)).save(photo, quality=90, exif=exif)
    IMAGES[1].save(tmp_path / "small.png")
    given = [photo, tmp_path / "small.png"]
    options = [word for path in given for word in ("-i", str(path))]
    made = generated(edit_snapshot, tmp_path, *options, "--size", f"{SIZE[0]}x{SIZE[1]}")
    loaded = [load_image(str(path)) for path in given]
    assert loaded[0].size == (1111, 1500)
    image, _ = editing(official, RECIPE, loaded, guidance_scale=1.0)
    assert np.abs(made.astype(int) - image).max() <= 1


def test_the_size_of_the_first_reference(
    edit_snapshot: Path, official: Any, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("first.png", "second.png")]
    for path, image in zip(paths, IMAGES, strict=True):
        image.save(path)
    made = generated(edit_snapshot, tmp_path, "-i", str(paths[1]), "-i", str(paths[0]))
    assert made.shape == (128, 96, 3)
    expected, _ = wanted(official, RECIPE, image=IMAGES[::-1], guidance_scale=1.0)
    assert np.abs(made.astype(int) - expected).max() <= 1


def generated(root: Path, folder: Path, *options: str) -> np.ndarray[Any, Any]:
    """What `klein generate` draws of RECIPE's words, seed and steps."""
    command = ["generate", PROMPT, "-m", str(root), "--device", "cpu", "--dtype", "float32", "-q"]
    command += ["-s", str(RECIPE.seed), "--steps", str(STEPS), "-o", str(folder / "made.png")]
    assert main([*command, *options]) == 0
    with Image.open(folder / "made.png") as image:
        return np.asarray(image)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("asked", ["one", "two"])
def test_references_on_a_gpu(edit_snapshot: Path, dtype: str, asked: str) -> None:
    """By kernels and graphs, beside diffusers on the same card."""
    from klein_cli.engines.oracle import draw, load_official, noise_for

    settings = choose(Settings(device="cuda", dtype=dtype))
    recipe = replace(RECIPE, references=ASKED[asked])
    last: list[Tensor] = []

    def keep(pipe: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        last.append(tensors["latents"].float().cpu())
        return {}

    with torch.inference_mode(), no_tf32():
        official = load_official(edit_snapshot, settings)
        noise = noise_for(official, recipe, settings)
        draw(official, recipe, STORE, latents=noise, callback_on_step_end=keep)
    _, latents = edited(Pipeline.load(resolve(str(edit_snapshot)), settings), [recipe])
    assert distance(latents, last[-1]) < (1e-4 if dtype == "float32" else 0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_cache", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_edit_its_own_on_a_gpu(
    small_snapshot: Path, tmp_path: Path, dtype: str, kv_cache: bool
) -> None:
    """The same bits the first time, from a graph, and after other shapes and references."""
    root = sharpened(small_snapshot, tmp_path / "edit", kv_cache=kv_cache)
    settings = choose(Settings(device="cuda", dtype=dtype))
    recipes = [
        replace(RECIPE, references=given, seed=seed) for given in ASKED.values() for seed in (1, 2)
    ]
    if not kv_cache:
        recipes.append(masked_recipe(SOURCE, HOLE, (0, 0, *SIZE)))
    shared = Pipeline.load(resolve(str(root)), settings)
    first = [shared.render([recipe], images=STORE)[0] for recipe in recipes]
    for recipe, image in list(zip(recipes, first, strict=True))[::-1]:
        assert np.array_equal(shared.render([recipe], images=STORE)[0], image)
    alone = Pipeline.load(resolve(str(root)), settings)
    assert np.array_equal(alone.render([recipes[5]], images=STORE)[0], first[5])
