"""Warm rounds: fresh prompts, sides in changing order, and what one more step costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from klein_cli.bench import measure
from klein_cli.bench.measure import Memory
from klein_cli.bench.references import references_of_size
from klein_cli.bench.warm import warm
from klein_cli.images.store import ImageStore
from klein_cli.recipe import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(prompt="", seed=0, width=64, height=64, steps=4, guidance=1.0, model="none")
PICTURE = Image.new("RGB", (1, 1))


class Clock:
    """A clock that stands still until a side has worked."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Worker:
    """A side whose first image takes 9 s more, each image 1 s, and each step `step` s."""

    def __init__(self, name: str, step: float, clock: Clock, log: list[tuple[str, Recipe]]) -> None:
        self.name = name
        self.memory = Memory(CPU)
        self._step = step
        self._clock = clock
        self._log = log
        self._first = 9.0

    def draw(self, recipe: Recipe) -> Image.Image:
        self._log.append((self.name, recipe))
        self._clock.seconds += self._first + 1.0 + self._step * recipe.steps
        self._first = 0.0
        return PICTURE

    def stages(self, recipe: Recipe) -> dict[str, float]:
        self.draw(recipe)
        return {"encode": 0.25, "denoise": self._step * recipe.steps, "decode": 0.75}

    def png(self, picture: Image.Image, recipe: Recipe) -> bytes:
        self._clock.seconds += 0.5
        return b""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure.time, "perf_counter", clock)
    return clock


def ignore(event: str) -> None:
    pass


def test_what_is_said_of_each_side(clock: Clock) -> None:
    sides = [Worker("quick", 0.1, clock, []), Worker("slow", 0.3, clock, [])]
    found = warm(sides, RECIPE, 3, CPU, ignore)
    quick, slow = found["quick"], found["slow"]
    assert quick.first == pytest.approx(10.4)
    assert quick.picture.median == pytest.approx(1.4)
    assert slow.picture.median == pytest.approx(2.2)
    assert quick.step is not None
    assert slow.step is not None
    assert quick.step.median == pytest.approx(0.1)
    assert slow.step.high == pytest.approx(0.3)
    assert slow.png.median == pytest.approx(0.5)
    assert (slow.encode.median, slow.decode.runs) == (0.25, 3)
    assert quick.peak is quick.held is quick.reserved is None


def test_no_prompt_is_drawn_twice(clock: Clock) -> None:
    """A pipeline remembers its last prompts: an equal one would cost no encoding."""
    log: list[tuple[str, Recipe]] = []
    warm([Worker("a", 0.1, clock, log), Worker("b", 0.1, clock, log)], RECIPE, 2, CPU, ignore)
    prompts = [recipe.prompt for _, recipe in log]
    assert len(prompts) > 10
    assert len(set(prompts)) == len(prompts)


def test_no_reference_is_drawn_twice(clock: Clock) -> None:
    """Nor are two of one image alike: one of them would not be encoded."""
    log: list[tuple[str, Recipe]] = []
    images = ImageStore()
    given = references_of_size(2, 96, 64, images)
    recipe = replace(RECIPE, width=96, references=given)
    warm([Worker("a", 0.1, clock, log)], recipe, 2, CPU, ignore, images)
    seen = [each for _, drawn in log for each in drawn.references]
    assert len(seen) == 2 * len(log)
    assert len({each.sha256 for each in seen}) == len(seen)
    assert {drawn.shape.references for _, drawn in log} == {((96, 64),) * 2}
    assert all(images.picture(each.sha256).width == 96 for each in seen)


def test_sides_take_turns_at_being_first(clock: Clock) -> None:
    log: list[tuple[str, Recipe]] = []
    warm([Worker("a", 0.1, clock, log), Worker("b", 0.1, clock, log)], RECIPE, 2, CPU, ignore)
    timed = "".join(name for name, _ in log[-12:])
    assert timed == "ababab" + "bababa"


def test_a_model_of_one_step_has_no_step_more(clock: Clock) -> None:
    log: list[tuple[str, Recipe]] = []
    one = Recipe(prompt="", seed=0, width=64, height=64, steps=1, guidance=1.0, model="none")
    found = warm([Worker("a", 0.1, clock, log)], one, 2, CPU, ignore)
    assert found["a"].step is None
    assert found["a"].picture.median == pytest.approx(1.1)
