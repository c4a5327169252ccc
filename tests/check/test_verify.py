"""What `klein verify` finds: nothing where there is nothing, and every wrong encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from injected import inject

import klein_cli.check.verify
from klein_cli.check.clip import clip_likeness
from klein_cli.check.edits import edits
from klein_cli.check.limits import LIMITS, precision
from klein_cli.check.metrics import Pixels
from klein_cli.check.official import reference
from klein_cli.check.page import AMPLIFIED, difference, page
from klein_cli.check.prompts import PROMPTS
from klein_cli.check.verify import Comparison, Measure, compare, verify
from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.checkpoints.resolve import resolve
from klein_cli.errors import ModelError
from klein_cli.images.store import ImageStore
from klein_cli.pipeline import Trace, choose
from klein_cli.recipe import Recipe
from klein_cli.settings import CHOICES, Settings
from klein_cli.text.tokenizer import PromptTokenizer
from tests.fixtures.adapters import write

pytestmark = pytest.mark.lengthy

CPU = Settings(device="cpu", dtype="float32", attention="sdpa")
SIDE, STEPS = 32, 2
RECIPES = [
    Recipe(prompt=p, seed=s, width=SIDE, height=SIDE, steps=STEPS, guidance=1.0, model="small")
    for s, p in enumerate(PROMPTS)
]
TELLING = [RECIPES[0], RECIPES[3], RECIPES[-1]]
"""A short prompt, one that holds the pad token, one without a pad: enough to tell."""

PARTS = {"embeddings, valid rows", "embeddings, padded rows", "latents", "picture"}
Made = list[tuple[Trace, Pixels]]


def ignore(event: str) -> None:
    pass


@pytest.fixture(scope="module")
def official(small_snapshot: Path) -> dict[str, Made]:
    """What diffusers makes of RECIPES, by dtype: drawn once for all tests."""
    return {
        dtype: reference(small_snapshot, replace(CPU, dtype=dtype), RECIPES, ignore)
        for dtype in ("float32", "bfloat16")
    }


@pytest.fixture
def drawn(official: dict[str, Made], monkeypatch: pytest.MonkeyPatch) -> None:
    """verify() with the reference already drawn."""
    monkeypatch.setattr(
        klein_cli.check.verify,
        "reference",
        lambda root, settings, recipes, on_event, **_: [
            official[settings.dtype][RECIPES.index(recipe)] for recipe in recipes
        ],
    )


def verified(
    root: Path,
    recipes: Sequence[Recipe] = RECIPES,
    batch_size: int | None = None,
    **changes: str,
) -> list[Comparison]:
    chosen = choose(CPU.with_(**changes))
    return verify(resolve(str(root)), chosen, recipes, batch_size=batch_size, on_event=ignore)


def failed(comparisons: Sequence[Comparison]) -> set[str]:
    """The parts in which something is too far."""
    return {m.part for comparison in comparisons for m in comparison.measures if not m.passed}


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("engine", ["native", "diffusers"])
def test_the_right_encoder_passes(
    small_snapshot: Path, dtype: str, attention: str, engine: str
) -> None:
    comparisons = verified(small_snapshot, dtype=dtype, attention=attention, engine=engine)
    assert failed(comparisons) == set()
    assert [c.recipe.prompt for c in comparisons] == list(PROMPTS)
    for comparison in comparisons:
        parts = {measure.part for measure in comparison.measures}
        assert parts == PARTS - ({"embeddings, padded rows"} if comparison.length == 512 else set())
        names = [m.name for m in comparison.measures if m.part == "latents"]
        assert names == ["step 1", "step 2"]
        assert comparison.ours.std() > 20


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("wrong", ["mask ignored", "first pad unmasked", "zeroed pads"])
def test_a_wrong_mask_fails_in_bfloat16_too(
    small_snapshot: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, wrong)
    assert "embeddings, padded rows" in failed(verified(small_snapshot, TELLING, dtype="bfloat16"))


@pytest.mark.usefixtures("drawn")
def test_pictures_alone_would_let_a_wrong_mask_pass(
    small_snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sglang's limits on images, which are no gate on the encoder; the rows are."""
    inject(monkeypatch, "first pad unmasked")
    for comparison in verified(small_snapshot):
        values = {measure.name: measure.value for measure in comparison.measures}
        assert values["ssim"] > 0.91
        assert values["psnr"] > 25
        assert values["mean_abs_diff"] < 5


def test_no_limit_is_looser_than_sglangs() -> None:
    words = {*CHOICES["dtype"].words, *CHOICES["quantize"].words}
    assert LIMITS.keys() == words - {"auto", "none"}
    for limits in LIMITS.values():
        assert limits.ssim >= 0.91
        assert limits.psnr >= 25
        assert limits.clip >= 0.97
        assert limits.mean_abs_diff <= 5
    exact, half = LIMITS["float32"], LIMITS["bfloat16"]
    for name in ("row_median", "row_worst", "latents", "mean_abs_diff"):
        assert getattr(exact, name) < getattr(half, name) / 100


def test_a_quantised_transformer_is_held_to_limits_of_its_own() -> None:
    assert precision(Settings(dtype="bfloat16")) == "bfloat16"
    assert precision(Settings(dtype="bfloat16", quantize="fp8")) == "fp8"
    assert LIMITS["fp8"].latents > LIMITS["bfloat16"].latents
    assert LIMITS["fp8"].row_worst == LIMITS["bfloat16"].row_worst  # the text encoder is not


def test_prompts_of_every_length_and_kind(small_snapshot: Path) -> None:
    tokenizer = PromptTokenizer.from_snapshot(small_snapshot)
    tokens = [tokenizer.tokenize(prompt) for prompt in PROMPTS]
    lengths = [token.length for token in tokens]
    assert min(lengths) == tokenizer.tokenize("").length < 20
    assert max(lengths) == 512
    assert any(100 < length < 512 for length in lengths)
    assert any(token.cut_tokens for token in tokens)
    assert any("<|endoftext|>" in prompt for prompt in PROMPTS)
    assert any(prompt != prompt.strip() for prompt in PROMPTS)


@pytest.mark.parametrize(
    ("value", "at_least", "passed"),
    [
        (0.5, False, True),
        (1.0, False, True),
        (1.5, False, False),
        (0.5, True, False),
        (math.inf, True, True),
        (math.inf, False, False),
        (math.nan, True, False),
        (math.nan, False, False),
    ],
)
def test_a_measure_is_held_to_its_limit(value: float, at_least: bool, passed: bool) -> None:
    measure = Measure(part="latents", name="step 1", value=value, limit=1.0, at_least=at_least)
    assert measure.passed == passed


def made(seed: int = 0) -> tuple[Trace, Pixels]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(1, 512, 6, generator=generator)
    latents = [torch.randn(1, 16, 128, generator=generator) for _ in range(STEPS)]
    pixels = torch.randint(0, 256, (SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    return Trace([embeddings], latents), pixels.numpy()


@pytest.mark.parametrize(
    ("row", "part"), [(3, "embeddings, valid rows"), (400, "embeddings, padded rows")]
)
def test_one_row_that_is_off_is_found(row: int, part: str) -> None:
    ours = made()
    ours[0].embeddings[0][0, row] *= 1.001
    assert failed([compare(RECIPES[0], 20, "float32", ours, made())]) == {part}


def test_one_step_and_one_picture_that_are_off_are_found() -> None:
    trace, picture = made()
    trace.latents[1] *= 1.001
    comparison = compare(RECIPES[0], 20, "float32", (trace, picture), made())
    assert [m.name for m in comparison.measures if not m.passed] == ["step 2"]
    brighter = np.where(picture < 250, picture + 5, picture).astype(np.uint8)
    comparison = compare(RECIPES[0], 20, "float32", (made()[0], brighter), made())
    assert failed([comparison]) == {"picture"}


def test_a_missing_step_is_no_comparison() -> None:
    trace, picture = made()
    del trace.latents[1]
    with pytest.raises(ValueError, match="zip"):
        compare(RECIPES[0], 20, "float32", (trace, picture), made())


def test_a_snapshot_that_diffusers_cannot_load(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="diffusers cannot load") as caught:
        reference(tmp_path, CPU, RECIPES, ignore)
    assert caught.value.hint


def test_differences_are_amplified_and_clipped() -> None:
    dark = np.full((16, 16, 3), 100, np.uint8)
    assert np.all(difference(dark, dark + 1) == AMPLIFIED)
    assert np.all(difference(dark + 1, dark) == AMPLIFIED)
    assert np.all(difference(dark, dark + 100) == 255)


def test_the_page_needs_nothing_else() -> None:
    recipe = replace(RECIPES[0], prompt="<script>&")
    comparison = compare(recipe, 20, "float32", made(), made(1))
    text = page({"model": "<tiny>"}, [comparison])
    assert "NOT the same" in text
    assert "too far" in text
    assert "&lt;script&gt;&amp;" in text
    assert "&lt;tiny&gt;" in text
    assert "<script" not in text
    assert text.count("data:image/png;base64,") == 3
    assert "http" not in text
    same = page({}, [compare(recipe, 20, "float32", made(), made())])
    assert "NOT the same" not in same
    assert "too far" not in same


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights, a few kilobytes."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    layer = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    layer["num_attention_heads"] = 2
    config = CLIPConfig(
        text_config={**layer, "vocab_size": 50},
        vision_config={**layer, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**sides).save_pretrained(folder)
    return folder


def test_clip_sees_likeness(clip_folder: Path) -> None:
    likeness = clip_likeness(clip_folder)
    (_, one), (_, other) = made(), made(1)
    assert likeness(one, one) == pytest.approx(1.0, abs=1e-5)
    assert likeness(one, other) < likeness(one, one)
    dark = np.zeros_like(one)
    comparison = compare(RECIPES[0], 20, "float32", (made()[0], dark), made(), likeness)
    assert "clip" in [measure.name for measure in comparison.measures]


def test_a_clip_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no CLIP model"):
        clip_likeness(tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_right_encoder_passes_on_a_gpu(
    small_snapshot: Path, dtype: str, attention: str
) -> None:
    comparisons = verified(small_snapshot, device="cuda", dtype=dtype, attention=attention)
    assert failed(comparisons) == set()


@pytest.mark.gpu
@pytest.mark.parametrize("wrong", ["mask ignored", "zeroed pads"])
def test_a_wrong_encoder_fails_on_a_gpu(
    small_snapshot: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, wrong)
    assert failed(verified(small_snapshot, device="cuda", dtype="bfloat16"))


@pytest.fixture(scope="module")
def edited(edit_snapshot: Path) -> tuple[ImageStore, list[Recipe], Made]:
    """What diffusers makes of the edits, of its own noise."""
    images = ImageStore()
    recipes = edits(replace(RECIPES[0], width=80, height=64), images, masks=True)
    made = reference(edit_snapshot, CPU, recipes, ignore, images=images)
    return images, recipes, made


def test_edits_are_held_to_the_same_limits(
    edit_snapshot: Path,
    edited: tuple[ImageStore, list[Recipe], Made],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Right, and with references at times of their own invention."""
    images, recipes, made = edited
    monkeypatch.setattr(klein_cli.check.verify, "reference", lambda *_, **more: made)
    assert [len(recipe.references) for recipe in recipes] == [1, 2, 2]

    def found() -> list[set[str]]:
        compared = verify(
            resolve(str(edit_snapshot)), choose(CPU), recipes, images=images, on_event=ignore
        )
        return [failed([comparison]) for comparison in compared]

    assert found() == [set()] * 3
    monkeypatch.setattr("klein_cli.sampling.latents.TIME_STEP", 1)
    assert all("latents" in parts for parts in found())


def test_adapters_are_added_on_both_sides(small_snapshot: Path, tmp_path: Path) -> None:
    """Ours as the weights arrive, diffusers' afterwards; with one of them without, it shows."""
    snapshot, store = resolve(str(small_snapshot)), AdapterStore()
    shapes = {n: h.shape for n, h in snapshot.part("transformer").tensors().items()}
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for name, (rows, columns) in ((n, s) for n, s in shapes.items() if len(s) == 2):
        module = name.removesuffix(".weight")
        tensors[f"{module}.lora_B.weight"] = torch.randn(rows, 2, generator=generator) * 0.1
        tensors[f"{module}.lora_A.weight"] = torch.randn(2, columns, generator=generator) * 0.1
    adapters = store.named([write(tmp_path / "a.safetensors", tensors)])
    settings = choose(CPU, snapshot.preset)
    adapted, plain = replace(RECIPES[0], adapters=adapters), RECIPES[0]
    (found,) = verify(snapshot, settings, [adapted], adapters=store, on_event=ignore)
    assert found.passed
    (other,) = verify(snapshot, settings, [plain], on_event=ignore)
    apart = np.abs(other.theirs.astype(int) - found.theirs.astype(int)).max()
    assert apart > 8, "the adapter changes nothing, and the test sees nothing"
