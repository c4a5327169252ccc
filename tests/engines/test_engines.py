"""Both engines behind their one door: the same pictures, and what each may import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from klein_cli.checkpoints.resolve import resolve
from klein_cli.engines.engine import as_timestep, load_engine
from klein_cli.errors import ModelError
from klein_cli.pipeline import Pipeline
from klein_cli.recipe import Recipe
from klein_cli.sampling.latents import position_ids
from klein_cli.settings import Settings

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


def native(root: Path) -> Any:
    return load_engine(
        "native", root, text_channels=_channels(root), device=CPU, dtype=torch.float32
    )


def counted(function: Callable[[Tensor], Any], name: str, counts: Counter[str]) -> Any:
    def call(given: Tensor) -> Any:
        counts[name] += 1
        return function(given)

    return call


def test_what_a_step_does_not_change_is_computed_once(
    small_snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modulations for all pictures, text and angles for one; and none of it for the wrong one."""
    engine, counts = native(small_snapshot), Counter[str]()
    monkeypatch.setattr(
        engine._dit, "modulations", counted(engine._dit.modulations, "modulations", counts)
    )
    for name in ("_words", "_rotary"):
        kept = getattr(engine, name)
        monkeypatch.setattr(kept, "_function", counted(kept._function, name, counts))
    texts = torch.randn(3, 1, 512, _channels(small_snapshot), generator=torch.manual_seed(0))
    latents = torch.randn(1, 6, 128)
    grids = [position_ids(512, grid, CPU) for grid in ((2, 3), (3, 2))]
    pictures = [(texts[0:1][0], grids[0]), (texts[1:2][0], grids[0]), (texts[2:3][0], grids[1])]
    for text, ids in pictures:
        for level in (1.0, 0.8):
            given = (latents, torch.tensor([level]), text, ids)
            assert torch.equal(
                engine.transformer(*given), native(small_snapshot).transformer(*given)
            )
    assert counts == {"modulations": 2, "_words": 3, "_rotary": 2}


def test_the_text_and_its_negative_are_both_kept(
    small_base_snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guidance goes from one to the other at every step."""
    engine, counts = native(small_base_snapshot), Counter[str]()
    kept = engine._words
    monkeypatch.setattr(kept, "_function", counted(kept._function, "words", counts))
    one, other = torch.randn(2, 1, 512, _channels(small_base_snapshot)).unbind(0)
    ids, latents = position_ids(512, (1, 2), CPU), torch.randn(1, 2, 128)
    for level in (1.0, 0.5, 0.2):
        for text in (one, other):
            engine.transformer(latents, torch.tensor([level]), text, ids)
    assert counts["words"] == 2


def test_no_more_timesteps_are_kept_than_a_few_schedules_have(small_snapshot: Path) -> None:
    engine = native(small_snapshot)
    first = engine._modulated_by(torch.tensor([1.0]))
    for step in range(300):
        engine._modulated_by(torch.tensor([1 / (step + 2)]))
        assert engine._modulated_by(torch.tensor([1.0])) is first  # still in use
    assert len(engine._modulations) <= 64


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
