"""Images with adapters: of whichever engine, however the weights came to be changed, the same bits
as of a model that was loaded with them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.checkpoints.resolve import resolve
from klein_cli.errors import ModelError, UsageError
from klein_cli.pipeline import Pipeline, choose
from klein_cli.presets import presets
from klein_cli.recipe import Adapter, Recipe
from klein_cli.settings import CHOICES, Settings
from tests.fixtures.adapters import write
from tests.fixtures.edit_models import images, sharpened

pytestmark = pytest.mark.lengthy

Shapes = dict[str, tuple[int, ...]]


@cache
def shapes(root: Path) -> Shapes:
    tensors = resolve(str(root)).part("transformer").tensors()
    return {name: held.shape for name, held in tensors.items()}


def write_adapter(path: Path, root: Path, seed: int, *, only: str = "") -> Path:
    """Random factors for all matrices of a snapshot whose names hold `only`."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes(root).items():
        if len(shape) == 2 and only in name:
            module = name.removesuffix(".weight")
            up = torch.randn(shape[0], 4, generator=generator) / shape[1] ** 0.5
            tensors[f"transformer.{module}.lora_B.weight"] = 0.3 * up
            tensors[f"transformer.{module}.lora_A.weight"] = torch.randn(
                4, shape[1], generator=generator
            )
    return write(path, tensors)


@pytest.fixture
def files(tmp_path: Path, small_snapshot: Path) -> tuple[Path, Path]:
    """One adapter for the whole transformer, and one for its modulations alone."""
    first = write_adapter(tmp_path / "a.safetensors", small_snapshot, 1)
    return first, write_adapter(tmp_path / "b.safetensors", small_snapshot, 2, only="modulation")


def recipe(*adapters: Adapter) -> Recipe:
    return Recipe(
        prompt="a cat",
        seed=4,
        width=48,
        height=32,
        steps=2,
        guidance=1.0,
        model="small",
        adapters=adapters,
    )


def settings(engine: str = "native", dtype: str = "bfloat16") -> Settings:
    return choose(Settings(device="cpu", dtype=dtype, engine=engine), presets()["tiny"])


def drawn(pipe: Pipeline, one: Recipe) -> NDArray[np.uint8]:
    return pipe.render([one])[0]


@pytest.mark.parametrize("engine", CHOICES["engine"].words)
def test_what_was_switched_to_is_what_is_loaded_at_once(
    small_snapshot: Path, files: tuple[Path, Path], engine: str
) -> None:
    """Each batch has the weights that its recipes say, whatever was drawn before: tensors that an
    adapter before had changed and this one does not, caches of what was computed with others.
    """
    store, snapshot = AdapterStore(), resolve(str(small_snapshot))
    a, b = store.named(files)
    half = Adapter(sha256=a.sha256, name="renamed", weight=0.5)
    wanted = [(), (a,), (a, b), (b,), (half, half), (b, a)]
    loaded = {
        adapters: drawn(
            Pipeline.load(snapshot, settings(engine), adapters=store, first=adapters),
            recipe(*adapters),
        )
        for adapters in wanted
    }
    assert len({image.tobytes() for image in loaded.values()}) >= 4
    pipe = Pipeline.load(snapshot, settings(engine), adapters=store, first=(b,))
    for adapters in [*wanted, *reversed(wanted)]:
        assert np.array_equal(drawn(pipe, recipe(*adapters)), loaded[adapters]), adapters


def test_weight_0_is_the_model_itself(small_snapshot: Path, files: tuple[Path, Path]) -> None:
    """Bit for bit, and without reading anything again."""
    store, snapshot = AdapterStore(), resolve(str(small_snapshot))
    a, b = store.named([f"{files[0]}=0", f"{files[1]}=-0.0"])
    plain = Pipeline.load(snapshot, settings())
    pipe = Pipeline.load(snapshot, settings(), adapters=store, first=(a, b))
    assert np.array_equal(drawn(pipe, recipe(a, b)), drawn(plain, recipe()))
    files[0].unlink()
    assert np.array_equal(drawn(pipe, recipe(a)), drawn(plain, recipe()))


def test_engines_draw_alike_with_adapters(small_snapshot: Path, files: tuple[Path, Path]) -> None:
    """Both have the same weights in them, under their official names."""
    store, snapshot = AdapterStore(), resolve(str(small_snapshot))
    adapters = store.named(files)
    weights = []
    for engine in CHOICES["engine"].words:
        pipe = Pipeline.load(snapshot, settings(engine), adapters=store, first=adapters)
        with pipe.parts["transformer"].ready() as module:
            weights.append(module.state_dict())
    one, other = weights
    assert one.keys() == other.keys() == shapes(small_snapshot).keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_adapter_that_breaks_spoils_its_own_images_only(
    small_snapshot: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """What was half done is done again, whole, for whoever comes next."""
    store, snapshot = AdapterStore(), resolve(str(small_snapshot))
    a, b = store.named(files)
    pipe = Pipeline.load(snapshot, settings(), adapters=store)
    before = drawn(pipe, recipe())
    with_b = drawn(pipe, recipe(b))
    files[0].write_bytes(b"another file")
    for _ in range(2):
        with pytest.raises(ModelError, match="has changed"):
            pipe.render([recipe(a)])
    assert np.array_equal(drawn(pipe, recipe()), before)
    assert np.array_equal(drawn(pipe, recipe(b)), with_b)
    unknown = Adapter(sha256="0" * 64, name="c.safetensors", weight=1.0)
    with pytest.raises(ModelError, match=r"c\.safetensors \(000000000000\) was not given"):
        pipe.render([recipe(unknown)])
    assert np.array_equal(drawn(pipe, recipe(b)), with_b)


def test_one_that_does_not_fit_is_refused_where_nobody_looked_before(
    small_snapshot: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """As a row of a stream may bring it; the next image is drawn as if nothing had been."""
    module = "single_transformer_blocks.7.attn.to_out"
    tensors = {f"{module}.lora_B.weight": torch.zeros(8, 2)}
    tensors[f"{module}.lora_A.weight"] = torch.zeros(2, 8)
    store, snapshot = AdapterStore(), resolve(str(small_snapshot))
    (wrong,) = store.named([write(tmp_path / "wrong.safetensors", tensors)])
    pipe = Pipeline.load(snapshot, settings(), adapters=store)
    before = drawn(pipe, recipe())
    with pytest.raises(ModelError, match=r"changes single_transformer_blocks\.7"):
        pipe.render([recipe(wrong)])
    assert np.array_equal(drawn(pipe, recipe()), before)


def test_in_python(small_snapshot: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    """Those of `open` hold for all images that name no others, and records say which they were."""
    first, second = files
    size = {"width": 48, "height": 32, "seed": 1}
    options = {"device": "cpu", "dtype": "float32"}
    pipe = Pipeline.open(str(small_snapshot), adapters=[f"{first}=0.5", second], **options)
    plain = Pipeline.open(str(small_snapshot), **options)
    (both,), (none,) = pipe("a cat", **size), pipe("a cat", adapters=[], **size)
    assert np.array_equal(none.pixels, plain("a cat", **size)[0].pixels)
    assert not np.array_equal(both.pixels, none.pixels)
    (again,) = plain("a cat", adapters=[f"{first}=0.5", str(second)], **size)
    assert np.array_equal(again.pixels, both.pixels)
    assert both.recipe is not None
    assert [(one.name, one.weight) for one in both.recipe.adapters] == [
        ("a.safetensors", 0.5),
        ("b.safetensors", 1.0),
    ]
    with pytest.raises(UsageError, match="there is no adapter"):
        pipe("a cat", adapters=["nothing.safetensors"], **size)
    other = {"img_in.lora_B.weight": torch.zeros(8, 2), "img_in.lora_A.weight": torch.zeros(2, 8)}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="is 8 x 8, and in small"):
        pipe("a cat", adapters=[tmp_path / "other.safetensors"], **size)
    (still,) = pipe("a cat", **size)
    assert np.array_equal(still.pixels, both.pixels)


def test_latents_are_denoised_with_the_adapters_of_the_pipeline(
    small_snapshot: Path, files: tuple[Path, Path]
) -> None:
    """Not with those of the image before."""
    options = {"device": "cpu", "dtype": "float32"}
    pipe = Pipeline.open(str(small_snapshot), adapters=[files[0]], **options)

    def latents() -> torch.Tensor:
        noise = pipe.noise([1], width=48, height=32)
        return pipe.denoise(noise, pipe.embed(["a cat"]), steps=1).packed

    wanted = latents()
    pipe("a cat", adapters=[], width=48, height=32)
    assert torch.equal(latents(), wanted)


def test_kept_references_are_those_of_the_adapters_at_hand(
    small_snapshot: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """A model that keeps keys and values of images computes them with the weights of the moment."""
    root = sharpened(small_snapshot, tmp_path / "kv", kv_cache=True)
    given = {"images": images(), "seed": 1, "width": 48, "height": 32, "steps": 1}
    options = {"device": "cpu", "dtype": "float32"}
    pipe = Pipeline.open(str(root), **options)
    wanted = {
        adapters: Pipeline.open(str(root), adapters=adapters, **options)("a cat", **given)
        for adapters in ((), (files[0],))
    }
    for adapters in [*wanted, *wanted]:
        (found,) = pipe("a cat", adapters=adapters, **given)
        assert np.array_equal(found.pixels, wanted[adapters][0].pixels)


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", ["none", "fp8"])
def test_graphs_that_were_recorded_before_draw_with_the_new_weights(
    medium_snapshot: Path, tmp_path: Path, quantize: str
) -> None:
    """They read the memory of the old ones, in which the new ones are."""
    store, snapshot = AdapterStore(), resolve(str(medium_snapshot))
    paths = [
        write_adapter(tmp_path / f"{seed}.safetensors", medium_snapshot, seed) for seed in (1, 2)
    ]
    a, b = store.named(paths)
    chosen = choose(Settings(device="cuda", quantize=quantize), snapshot.preset)
    wanted = {
        adapters: drawn(
            Pipeline.load(snapshot, chosen, adapters=store, first=adapters), recipe(*adapters)
        )
        for adapters in ((), (a,), (a, b))
    }
    pipe = Pipeline.load(snapshot, chosen, adapters=store)
    for _ in range(3):  # graphs are recorded at the second use
        assert np.array_equal(drawn(pipe, recipe()), wanted[()])
    for adapters in ((a,), (a, b), (), (a,)):
        assert np.array_equal(drawn(pipe, recipe(*adapters)), wanted[adapters])
