"""Acceptance: `klein generate` draws what diffusers.Flux2KleinPipeline draws.

A wrong mask, a wrong tap, the final norm, a timestep 1000 times too large, swapped latent
channels or a missing batch-norm statistic all show here as pixels off by far more than 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from klein_cli.cli.app import app

pytestmark = pytest.mark.lengthy

SEED = 7
PROMPTS = [
    "a cat",
    "a lighthouse on a cliff in a storm, waves breaking, dramatic clouds " * 4,
    "typed <|endoftext|> tokens <think> in the middle",
    "far too long " * 300,
]
Picture = np.ndarray[Any, np.dtype[np.int64]]


def reference(root: Path) -> Any:
    from diffusers import Flux2KleinPipeline

    pipe = Flux2KleinPipeline.from_pretrained(root, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def distilled(small_snapshot: Path) -> Any:
    return reference(small_snapshot)


def wanted(pipe: Any, number: int, size: tuple[int, int], steps: int, guidance: float) -> Picture:
    """diffusers' image of PROMPTS[number], alone, its noise drawn on the CPU."""
    width, height = size
    images = pipe(
        prompt=PROMPTS[number],
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(SEED + number),
    ).images
    return np.asarray(images[0]).astype(int)


def generate(root: Path, folder: Path, size: tuple[int, int], *options: str) -> list[Picture]:
    """The images that `klein generate` leaves in `folder`, in the order of their names."""
    command = ["generate", "--model", str(root), "--size", f"{size[0]}x{size[1]}"]
    command += ["--device", "cpu", "--dtype", "float32", "-o", f"{folder}/", "-q", *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))]


def prompts_file(folder: Path) -> str:
    path = folder / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return str(path)


@pytest.mark.parametrize(
    ("size", "engine"),
    [((64, 64), "native"), ((96, 64), "native"), ((48, 112), "native"), ((96, 64), "diffusers")],
    ids=str,
)
def test_alone_and_in_a_batch(
    small_snapshot: Path, distilled: Any, tmp_path: Path, size: tuple[int, int], engine: str
) -> None:
    source = ["--prompts-file", prompts_file(tmp_path), "--seed", str(SEED), "--engine", engine]
    alone = generate(small_snapshot, tmp_path / "alone", size, *source, "--batch-size", "1")
    batch = generate(small_snapshot, tmp_path / "batch", size, *source, "--batch-size", "4")
    assert len(alone) == len(batch) == len(PROMPTS)
    for number, (single, together) in enumerate(zip(alone, batch, strict=True)):
        expected = wanted(distilled, number, size, steps=4, guidance=1.0)
        assert expected.std() > 20
        assert np.array_equal(single, together)
        assert np.abs(single - expected).max() <= 1


@pytest.mark.parametrize("engine", ["native", "diffusers"])
def test_with_guidance(small_base_snapshot: Path, tmp_path: Path, engine: str) -> None:
    size, options = (64, 96), ["--steps", "5", "--guidance", "3.5", "--seed", str(SEED)]
    options += ["--engine", engine]
    source = ["--prompts-file", prompts_file(tmp_path), "--batch-size", "4"]
    pictures = generate(small_base_snapshot, tmp_path / "out", size, *source, *options)
    pipe = reference(small_base_snapshot)
    for number, picture in enumerate(pictures):
        expected = wanted(pipe, number, size, steps=5, guidance=3.5)
        assert np.abs(picture - expected).max() <= 1
