"""The embedded model: small, whole, and a FLUX.2 [klein] that the stock libraries load unchanged.

What its images show is judged by scripts/eval_tiny.py, and a little of it here and in
tests/cli/commands/test_generate_tiny.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny_edit_cases import edit_cases
from tiny_edit_judge import judge_edit
from tiny_edits import KINDS
from tiny_painter import Painter

from klein_cli.check.golden import FILE as GOLDEN
from klein_cli.checkpoints.resolve import resolve
from klein_cli.pipeline import Pipeline, choose
from klein_cli.recipe import Recipe
from klein_cli.settings import Settings
from klein_cli.text.tokenizer import PromptTokenizer

pytestmark = pytest.mark.lengthy

TINY = Path(__file__).parents[1] / "klein_cli" / "tiny"
MEGABYTES = 1_000_000
PROMPTS = [
    "a red circle on a white background",
    "please draw a small blue star above a large green square on a black background, thank you. "
    "The edges should be sharp and the surface perfectly flat. " * 6,
    "",
    "café, naïve, 猫, <|endoftext|> and <think> in the middle",
]


@pytest.fixture(scope="module")
def stock() -> Any:
    from diffusers import Flux2KleinPipeline

    pipe = Flux2KleinPipeline.from_pretrained(TINY, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours() -> Pipeline:
    snapshot = resolve("tiny")
    settings = choose(Settings(device="cpu", dtype="float32"), snapshot.preset)
    return Pipeline.load(snapshot, settings)


def recipes(width: int, height: int) -> list[Recipe]:
    return [
        Recipe(
            prompt=prompt,
            seed=40 + number,
            width=width,
            height=height,
            steps=4,
            guidance=1.0,
            model="tiny",
        )
        for number, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize(("width", "height"), [(256, 256), (144, 192)])
def test_the_stock_pipeline_draws_the_same_pictures(
    stock: Any, ours: Pipeline, width: int, height: int
) -> None:
    made = recipes(width, height)
    for recipe, picture in zip(made, ours.render(made), strict=True):
        (image,) = stock(
            prompt=recipe.prompt,
            width=width,
            height=height,
            num_inference_steps=4,
            generator=torch.Generator("cpu").manual_seed(recipe.seed),
        ).images
        wanted = np.asarray(image).astype(int)
        assert wanted.shape == (height, width, 3)
        assert np.abs(picture.astype(int) - wanted).max() <= 1, recipe.prompt


def test_the_stock_pipeline_makes_the_same_edit(stock: Any, ours: Pipeline) -> None:
    prompt, image = "please make the circle green", Image.open(GOLDEN).convert("RGB")
    (wanted,) = stock(
        prompt=prompt,
        image=image,
        num_inference_steps=4,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images
    (made,) = ours(prompt, images=[image], seed=3)
    apart = np.abs(made.pixels.astype(int) - np.asarray(wanted).astype(int))
    assert apart.max() <= 1
    assert np.abs(made.pixels.astype(int) - np.asarray(image)).max() > 100, "nothing was edited"


@pytest.mark.parametrize(
    ("kind", "own"), [*((kind, False) for kind in KINDS), ("add", True)], ids=str
)
def test_it_makes_a_held_out_edit_of_each_kind(ours: Pipeline, kind: str, own: bool) -> None:
    """Fails where the image does not reach the model as it was trained to see it.

    On an image that the script draws, or one of its own.
    """
    painter = Painter(ours, (256, 256), steps=4, batch=1)
    (case,) = edit_cases(kind, 1, painter, own=own)
    (after,) = painter.paint([case.text], 0, [case.before])
    assert judge_edit(case.before, after, case.edit, case.new_extent) == [], case.text


def test_the_stock_tokenizer_reads_prompts_as_ours_does() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(TINY / "tokenizer")
    tokenizer = PromptTokenizer.from_snapshot(TINY)
    for prompt in PROMPTS:
        text = theirs.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        wanted = theirs(text, padding="max_length", truncation=True, max_length=512)
        tokens = tokenizer.tokenize(prompt)
        assert list(tokens.ids) == wanted["input_ids"]
        assert tokens.length == sum(wanted["attention_mask"])


def test_it_has_the_shape_of_the_real_model() -> None:
    """28 layers, so that the last tap is not the last layer, grouped heads and no pad embedding."""
    config = json.loads((TINY / "text_encoder" / "config.json").read_text())
    assert config["num_hidden_layers"] == 28
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config.get("pad_token_id") is None
    index = json.loads((TINY / "model_index.json").read_text())
    assert index["_class_name"] == "Flux2KleinPipeline"
    assert index["is_distilled"] is True


def test_its_weights_are_half_precision_but_for_statistics() -> None:
    for path in TINY.rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            kinds = {
                weights.get_slice(name).get_dtype()
                for name in weights.keys()  # noqa: SIM118 (not a dict)
                if not name.startswith("bn.")
            }
        assert kinds in ({"BF16"}, {"F16"}), path


def test_it_is_small_and_has_its_card() -> None:
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 18 * MEGABYTES
    assert TINY / "README.md" in files
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
