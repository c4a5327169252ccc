"""The face of the package: five lines for whoever draws, the steps for whoever looks inside."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pillow
from torch import Tensor

from klein_cli import Image, KleinError, Pipeline
from klein_cli.engines.native import NativeEngine
from klein_cli.errors import ModelError, UsageError
from klein_cli.output.reading import read_pixels, read_record

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "library.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def pipe(small_snapshot: Path) -> Pipeline:
    return Pipeline.open(str(small_snapshot), device="cpu", dtype="float32")


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_of_the_page_run(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/library.md", "exec"), {"__name__": "__main__"})


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.process
def test_importing_the_package_imports_nothing_heavy() -> None:
    script = (
        "import sys, json, klein_cli; dir(klein_cli); klein_cli.Recipe; klein_cli.Settings\n"
        "heavy = {'torch', 'numpy', 'PIL', 'typer', 'rich', 'huggingface_hub', 'tokenizers'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert json.loads(done.stdout) == []


def test_what_is_not_there_is_an_attribute_error() -> None:
    import klein_cli

    with pytest.raises(AttributeError, match="Pipelines"):
        _ = klein_cli.Pipelines  # type: ignore[attr-defined]


def test_images_have_seeds_that_follow_each_other_and_know_their_recipes(pipe: Pipeline) -> None:
    images = pipe("a red fox", seed=7, n=2, width=64, height=48, steps=2)
    assert [image.recipe.seed for image in images if image.recipe] == [7, 8]
    assert images[0].pixels.shape == (48, 64, 3)
    (again,) = pipe("a red fox", seed=8, width=64, height=48, steps=2)
    assert np.array_equal(again.pixels, images[1].pixels)
    assert again.recipe == images[1].recipe


def test_a_saved_image_is_the_shells(pipe: Pipeline, small_snapshot: Path, tmp_path: Path) -> None:
    """Byte for byte: the record that is inside included."""
    from klein_cli.cli.app import main

    (image,) = pipe("a red fox", seed=7, width=64, height=48, steps=2)
    path = image.save(tmp_path / "new" / "fox.png")
    options = ["-m", str(small_snapshot), "--device", "cpu", "--dtype", "float32", "-q"]
    options += ["--size", "64x48", "--steps", "2", "-s", "7", "-o", str(tmp_path / "shell.png")]
    assert main(["generate", "a red fox", *options]) == 0
    assert path.read_bytes() == (tmp_path / "shell.png").read_bytes()
    assert read_record(path).recipe == image.recipe


def test_a_file_is_not_replaced_unless_that_is_said(pipe: Pipeline, tmp_path: Path) -> None:
    (image,) = pipe("a cat", seed=1, width=32, height=32, steps=1)
    path = image.save(tmp_path / "a.png")
    with pytest.raises(FileExistsError):
        image.save(path)
    image.save(path, overwrite=True)
    with pytest.raises(UsageError, match=r"a\.gif"):
        image.save(tmp_path / "a.gif")


def test_a_stream_takes_prompts_as_it_goes(pipe: Pipeline) -> None:
    taken: list[str] = []

    def prompts() -> object:
        for prompt in ("a cat", "a dog", "a fox"):
            taken.append(prompt)
            yield prompt

    images = pipe.stream(prompts(), seed=3, width=32, height=32, steps=1)  # type: ignore[arg-type]
    first = next(images)
    assert taken == ["a cat"]
    assert first.recipe is not None
    assert (first.recipe.prompt, first.recipe.seed) == ("a cat", 3)
    assert [image.recipe.seed for image in images if image.recipe] == [4, 5]


def test_the_steps_make_the_same_image(pipe: Pipeline) -> None:
    (whole,) = pipe("a red fox", seed=7, width=64, height=48, steps=2)
    latents = pipe.noise([7], width=64, height=48)
    latents = pipe.denoise(latents, pipe.embed(["a red fox"]), steps=2)
    (image,) = pipe.decode(latents)
    assert np.array_equal(image.pixels, whole.pixels)
    assert image.recipe is None


def test_noise_levels_and_latents_of_ones_own(pipe: Pipeline, tmp_path: Path) -> None:
    """Half of the way down, and on from there, is the whole way; another way is another image."""
    noise, text = pipe.noise([7], width=64, height=48), pipe.embed(["a red fox"])
    seen: list[tuple[int, float, tuple[int, ...]]] = []

    def callback(step: int, sigma: float, latents: Tensor) -> None:
        seen.append((step, round(sigma, 6), tuple(latents.shape)))

    way = [1.0, 0.9, 0.6, 0.0]
    whole = pipe.denoise(noise, text, sigmas=way, callback=callback)
    assert seen == [(1, 0.9, (1, 12, 128)), (2, 0.6, (1, 12, 128)), (3, 0.0, (1, 12, 128))]
    half = pipe.denoise(noise, text, sigmas=way[:2])
    assert torch.equal(pipe.denoise(half, text, sigmas=way[1:]).packed, whole.packed)
    other = pipe.denoise(noise, text, sigmas=[1.0, 0.8, 0.6, 0.0])
    assert not torch.equal(other.packed, whole.packed)
    path = pipe.decode(whole)[0].save(tmp_path / "own.png")
    assert read_pixels(path).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 65}, "width 65 is not a multiple of 16"),
        ({"width": 8000}, "width 8000"),
        ({"steps": 0}, "steps 0 is out of range"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"n": 0}, "n 0 is out of range"),
    ],
)
def test_what_makes_no_image_is_an_error_of_kleins(
    pipe: Pipeline, options: dict[str, int], words: str
) -> None:
    with pytest.raises(KleinError, match=words) as caught:
        pipe("a cat", **options)  # type: ignore[arg-type]
    assert caught.value.hint


def test_an_empty_prompt_and_an_unknown_model_are_errors_of_kleins(pipe: Pipeline) -> None:
    with pytest.raises(UsageError, match="empty"):
        pipe(" ")
    with pytest.raises(ModelError, match="klein-5b"):
        Pipeline.open("klein-5b")
    with pytest.raises(UsageError, match="vulkan"):
        Pipeline.open("tiny", device="vulkan")


@pytest.mark.parametrize("sigmas", [[1.0], [], [2.0, 0.0], [1.0, float("nan")]])
def test_sigmas_that_are_none_are_refused(pipe: Pipeline, sigmas: list[float]) -> None:
    noise, text = pipe.noise([1], width=32, height=32), pipe.embed(["a"])
    with pytest.raises(UsageError, match="sigmas"):
        pipe.denoise(noise, text, sigmas=sigmas)
    with pytest.raises(UsageError, match="2 prompts for 1 images"):
        pipe.denoise(noise, pipe.embed(["a", "b"]))


def test_several_threads_draw_one_after_another(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once would share a graph's memory on a GPU, and the remembered embeddings anywhere."""
    prompts = ["a cat", "a dog", "a fox", "an owl"]
    found: dict[str, Image] = {}
    inside: list[int] = []
    most = [0]
    velocity = NativeEngine.velocity

    def watched(engine: NativeEngine, *given: Any) -> Tensor:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        try:
            return velocity(engine, *given)
        finally:
            inside.pop()

    monkeypatch.setattr(NativeEngine, "velocity", watched)

    def draw(prompt: str) -> None:
        (found[prompt],) = pipe(prompt, seed=1, width=32, height=32, steps=2)

    threads = [threading.Thread(target=draw, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    for prompt in prompts:
        (alone,) = pipe(prompt, seed=1, width=32, height=32, steps=2)
        assert np.array_equal(found[prompt].pixels, alone.pixels)


@pytest.mark.process
@pytest.mark.slow
def test_a_strangers_scripts_pass_mypy(tmp_path: Path) -> None:
    """The package says that it has types: a script that uses it is checked against them."""
    for number, example in enumerate(EXAMPLES):
        (tmp_path / f"example_{number}.py").write_text(example)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """An image of 100x70, transparent on the right."""
    pixels = np.zeros((70, 100, 4), np.uint8)
    pixels[..., 0] = np.arange(100) * 2
    pixels[:, :60, 3] = 255
    path = tmp_path / "photo.png"
    pillow.fromarray(pixels).save(path)
    return path


def test_images_are_edited(pipe: Pipeline, photo: Path) -> None:
    """Of the first one's shape; by path, bytes or Pillow's, which is the same."""
    (drawn,) = pipe("a red fox", seed=7, steps=1, width=96, height=64)
    (edited,) = pipe("a red fox", seed=7, steps=1, images=[photo])
    assert edited.pixels.shape == (64, 96, 3)
    assert not np.array_equal(edited.pixels, drawn.pixels)
    assert edited.recipe is not None
    (reference,) = edited.recipe.references
    assert (reference.name, reference.width, reference.height) == ("photo.png", 96, 64)
    with pillow.open(photo) as image:
        for given in (str(photo), photo.read_bytes(), image):
            (same,) = pipe("a red fox", seed=7, steps=1, images=[given])
            assert np.array_equal(same.pixels, edited.pixels)
    (other,) = pipe("a red fox", seed=7, steps=1, images=[photo, photo], width=48, height=48)
    assert other.pixels.shape == (48, 48, 3)


def test_a_saved_edit_is_the_shells(
    pipe: Pipeline, photo: Path, small_snapshot: Path, tmp_path: Path
) -> None:
    from klein_cli.cli.app import main

    (image,) = pipe("a red fox", seed=7, steps=1, images=[photo], mask="alpha")
    assert image.pixels.shape == (70, 100, 4)
    path = image.save(tmp_path / "fox.png")
    options = ["-m", str(small_snapshot), "--device", "cpu", "--dtype", "float32", "-q"]
    options += ["-i", str(photo), "--mask", "alpha", "--steps", "1", "-s", "7"]
    assert main(["generate", "a red fox", *options, "-o", str(tmp_path / "shell.png")]) == 0
    assert path.read_bytes() == (tmp_path / "shell.png").read_bytes()
    with pillow.open(path) as saved, pillow.open(photo) as source:
        kept, before = np.asarray(saved.convert("RGBA")), np.asarray(source)
        assert np.array_equal(kept[:, :60], before[:, :60])
        assert not np.array_equal(kept[:, 60:], before[:, 60:])


def test_a_mask_and_an_expansion(pipe: Pipeline, photo: Path) -> None:
    white = pillow.new("L", (100, 70))
    white.paste(255, (10, 10, 50, 40))
    heard: list[str] = []
    (image,) = pipe(
        "a fox",
        seed=7,
        steps=1,
        images=[photo],
        mask=white,
        expand=(0, 0, 28, 0),
        mask_blur=3,
        on_event=heard.append,
    )
    assert image.pixels.shape[:2] == (70, 128)
    assert image.recipe is not None
    assert image.recipe.mask is not None
    assert (image.recipe.mask.expand, image.recipe.mask.blur) == ((0, 0, 28, 0), 3)
    assert image.to_pil().size == (128, 70)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"mask": "alpha"}, "no image"),
        ({"images": ["nowhere.png"]}, "nowhere"),
        ({"images": [b"what"]}, "image is not an image"),
        ({"images": [pillow.new("CMYK", (64, 64))]}, "CMYK"),
        ({"images": [pillow.new("RGB", (64, 64))], "mask": "alpha"}, "no transparent part"),
    ],
    ids=["no image", "nowhere", "no image file", "CMYK", "opaque"],
)
def test_what_cannot_be_edited_is_refused(
    pipe: Pipeline, given: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        pipe("a fox", steps=1, **given)
