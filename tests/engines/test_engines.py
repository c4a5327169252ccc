"""Both engines behind their one door: the same pictures, and what each may import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from klein_cli.engines.engine import as_timestep, load_engine
from klein_cli.errors import ModelError
from klein_cli.pipeline import Pipeline
from klein_cli.recipe import Recipe, Settings
from klein_cli.snapshot import resolve

CPU = torch.device("cpu")


def test_both_engines_draw_the_same_picture(small_snapshot: Path) -> None:
    snapshot = resolve(str(small_snapshot))
    recipe = Recipe(
        prompt="a cat", seed=3, width=96, height=64, steps=4, guidance=1.0, model="small"
    )
    pictures = []
    for engine in ("native", "diffusers"):
        settings = Settings(device="cpu", dtype="float32", attention="sdpa", engine=engine)
        pictures += Pipeline.load(snapshot, settings).render([recipe])
    assert pictures[0].std() > 20
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1


def test_making_a_picture_imports_neither_diffusers_nor_transformers(
    small_snapshot: Path, tmp_path: Path
) -> None:
    options = ["generate", "a cat", "-m", str(small_snapshot), "--size", "32x32", "-s", "1"]
    options += ["-o", str(tmp_path / "out.png"), "--device", "cpu", "-q"]
    script = (
        "import sys, json\n"
        "from klein_cli.cli.app import main\n"
        f"code = main({options!r})\n"
        "heavy = [m for m in ('diffusers', 'transformers') if m in sys.modules]\n"
        "print(json.dumps([code, heavy]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert json.loads(result.stdout.splitlines()[-1]) == [0, []]
    assert (tmp_path / "out.png").is_file()


def test_the_native_engine_names_what_it_does_not_read(small_snapshot: Path) -> None:
    engine = load_engine(
        "native", small_snapshot, text_channels=_channels(small_snapshot), device=CPU,
        dtype=torch.float32,
    )  # fmt: skip
    assert engine.skipped
    assert all(name.startswith(("vae.encoder.", "vae.quant_conv.")) for name in engine.skipped)


@pytest.mark.parametrize("engine", ["native", "diffusers"])
def test_parts_of_two_models_are_refused(small_snapshot: Path, engine: str) -> None:
    with pytest.raises(ModelError, match="joint_attention_dim"):
        load_engine(engine, small_snapshot, text_channels=7, device=CPU, dtype=torch.float32)


def test_the_timestep_is_rounded_after_the_multiplication() -> None:
    last = torch.tensor([0.767199934])
    assert as_timestep(last, torch.bfloat16).item() == 768.0
    assert as_timestep(last, torch.float32).item() == pytest.approx(767.2, abs=1e-3)


def _channels(root: Path) -> int:
    config = json.loads((root / "transformer" / "config.json").read_text())
    return int(config["joint_attention_dim"])
