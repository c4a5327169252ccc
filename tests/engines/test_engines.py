"""Both engines behind their one door: the same images, and what each may import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from klein_cli.checkpoints.resolve import resolve
from klein_cli.device.device import device_for
from klein_cli.engines.engine import as_timestep
from klein_cli.engines.load import load_engine
from klein_cli.errors import ModelError
from klein_cli.models.flux2 import Flux2Transformer
from klein_cli.optimize.part import Target
from klein_cli.pipeline import Pipeline
from klein_cli.recipe import Recipe
from klein_cli.sampling.latents import position_ids
from klein_cli.settings import Settings

CPU = torch.device("cpu")
TARGET = Target(device=device_for("cpu"), dtype=torch.float32)


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


def native(root: Path) -> Any:
    return load_engine("native", resolve(str(root)), TARGET, text_channels=_channels(root))


def test_what_a_step_does_not_change_is_computed_once(
    small_snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modulations for all images, text and angles for one; and none of it for the wrong one."""
    counts = Counter[str]()

    def counted(name: str) -> None:
        function = getattr(Flux2Transformer, name)

        def call(dit: Flux2Transformer, given: Tensor) -> Any:
            counts[name] += 1
            return function(dit, given)

        monkeypatch.setattr(Flux2Transformer, name, call)

    texts = torch.randn(3, 1, 512, _channels(small_snapshot), generator=torch.manual_seed(0))
    latents = torch.randn(1, 6, 128)
    grids = [position_ids(512, grid, CPU) for grid in ((2, 3), (3, 2))]
    images = [(texts[0], grids[0]), (texts[1], grids[0]), (texts[2], grids[1])]
    fresh = [[native(small_snapshot) for level in (1.0, 0.8)] for _ in images]
    wanted = [
        [
            engine.velocity(latents, torch.tensor([level]), engine.condition(*image))
            for engine, level in zip(engines, (1.0, 0.8), strict=True)
        ]
        for engines, image in zip(fresh, images, strict=True)
    ]
    engine = native(small_snapshot)
    for name in ("modulations", "rotary"):
        counted(name)
    for image, velocities in zip(images, wanted, strict=True):
        condition = engine.condition(*image)
        for level, velocity in zip((1.0, 0.8), velocities, strict=True):
            found = engine.velocity(latents, torch.tensor([level]), condition)
            assert torch.equal(found, velocity)
    assert counts == {"modulations": 2, "rotary": 3}


def test_no_more_timesteps_are_kept_than_a_few_schedules_have(
    small_snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = native(small_snapshot)
    levels: list[float] = []
    modulations = Flux2Transformer.modulations

    def counted(dit: Flux2Transformer, timestep: Tensor) -> Tensor:
        levels.append(round(float(timestep) / 1000, 6))
        return modulations(dit, timestep)

    monkeypatch.setattr(Flux2Transformer, "modulations", counted)
    text = torch.randn(1, 512, _channels(small_snapshot))
    condition = engine.condition(text, position_ids(512, (1, 1), CPU))

    def step(level: float) -> None:
        engine.velocity(torch.zeros(1, 1, 128), torch.tensor([level]), condition)

    for number in range(70):
        step(1.0)  # still in use
        step(1 / (number + 2))
    assert levels.count(1.0) == 1
    step(0.5)
    assert levels.count(0.5) == 2


@pytest.mark.process
def test_making_a_picture_imports_no_library_of_models(
    small_snapshot: Path, tmp_path: Path
) -> None:
    options = ["generate", "a cat", "-m", str(small_snapshot), "--size", "32x32", "-s", "1"]
    options += ["-o", str(tmp_path / "out.png"), "--device", "cpu", "-q"]
    script = (
        "import sys, json\n"
        "from klein_cli.cli.app import main\n"
        f"code = main({options!r})\n"
        "heavy = [m for m in ('diffusers', 'transformers', 'triton', 'ray') if m in sys.modules]\n"
        "print(json.dumps([code, heavy]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert json.loads(result.stdout.splitlines()[-1]) == [0, []]
    assert (tmp_path / "out.png").is_file()


def test_the_native_engine_names_what_it_does_not_read(small_snapshot: Path) -> None:
    skipped = native(small_snapshot).parts["vae"].skipped
    assert skipped
    assert all(name.startswith(("encoder.", "quant_conv.")) for name in skipped)


@pytest.mark.parametrize("engine", ["native", "diffusers"])
def test_parts_of_two_models_are_refused(small_snapshot: Path, engine: str) -> None:
    with pytest.raises(ModelError, match="joint_attention_dim"):
        load_engine(engine, resolve(str(small_snapshot)), TARGET, text_channels=7)


def test_the_timestep_is_rounded_after_the_multiplication() -> None:
    last = torch.tensor([0.767199934])
    assert as_timestep(last, torch.bfloat16).item() == 768.0
    assert as_timestep(last, torch.float32).item() == pytest.approx(767.2, abs=1e-3)


def _channels(root: Path) -> int:
    config = json.loads((root / "transformer" / "config.json").read_text())
    return int(config["joint_attention_dim"])
