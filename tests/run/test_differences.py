"""A record -> the same image here, as far as here goes, and what is not as it was then."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from klein_cli.errors import ModelError, UsageError
from klein_cli.output.metadata import Origin
from klein_cli.output.reading import Record
from klein_cli.presets import Preset, presets
from klein_cli.prompts.rows import Defaults, recipe_of
from klein_cli.recipe import Model, Recipe
from klein_cli.run.differences import as_many_threads, differences, row_of_recipe, settings_here
from klein_cli.settings import Settings

TINY, BASE = presets()["tiny"], presets()["klein-base-4b"]
CPU = Settings(device="cpu", dtype="float32", attention="sdpa")
RECIPE = Recipe(
    prompt="a cat", seed=1, width=320, height=256, steps=7, guidance=2.5, model="klein-base-4b"
)


def record(**changes: Any) -> Record:
    return replace(
        Record(
            format=2,
            klein="0.1.0",
            recipe=RECIPE,
            settings=CPU,
            repo=None,
            revision=None,
            weights=None,
            sigmas=(),
            provenance={"torch": "2.12", "threads": "2"},
        ),
        **changes,
    )


def here(revision: str | None = None, **changes: Any) -> Origin:
    return replace(
        Origin(
            model=Model(name="klein-base-4b", revision=revision, weights="00"),
            settings=CPU,
            provenance={"torch": "2.12", "threads": "2"},
        ),
        **changes,
    )


def again(preset: Preset, then: Recipe = RECIPE, **asked: Any) -> Recipe:
    defaults = Defaults(preset=preset, **asked)
    return recipe_of(row_of_recipe(then, defaults), defaults, then.seed)


def test_a_picture_is_drawn_again_from_its_recipe_but_for_what_is_asked_for() -> None:
    assert again(BASE) == RECIPE
    assert again(BASE, steps=9, negative_prompt="rain") == replace(
        RECIPE, steps=9, negative_prompt="rain"
    )


def test_a_model_of_the_other_kind_keeps_steps_and_guidance() -> None:
    """Four steps of a base model are fog, and a distilled one has no guidance."""
    then = replace(RECIPE, negative_prompt="rain")
    wanted = replace(RECIPE, steps=TINY.steps, guidance=TINY.guidance, model="tiny")
    assert again(TINY, then) == wanted
    assert again(TINY, then, steps=9) == replace(wanted, steps=9)
    drawn = replace(wanted, width=1024, height=1024)
    assert again(BASE, drawn) == replace(
        drawn, steps=BASE.steps, guidance=BASE.guidance, model=BASE.name
    )


def test_a_folder_that_nobody_knows_gets_the_pictures_steps() -> None:
    assert again(BASE, replace(RECIPE, model="my-model")).steps == 7


@pytest.mark.parametrize(
    ("then", "now", "lines"),
    [
        ({}, {}, []),
        ({}, {"provenance": {"torch": "2.13", "threads": "2"}}, ["torch: 2.12 then, 2.13 here"]),
        ({}, {"provenance": {"torch": "2.12"}}, ["threads: 2 then, nothing here"]),
        ({"provenance": {"python": "3.11"}}, {"provenance": {"python": "3.12"}}, []),
        ({"provenance": {"diffusers": "1"}}, {"provenance": {"diffusers": "2"}}, []),
        (
            {
                "provenance": {"diffusers": "1"},
                "settings": replace(CPU, engine="diffusers"),
            },
            {"provenance": {"diffusers": "2"}},
            ["diffusers: 1 then, 2 here"],
        ),
        ({}, {"model": "tiny"}, ["model: klein-base-4b then, tiny here"]),
        ({"revision": "ab"}, {"revision": "cd"}, ["model: revision ab then, cd here"]),
        ({"weights": "00", "revision": "ab"}, {"revision": "cd", "model": "copy"}, []),
        ({"weights": "01"}, {}, ["model: other weights than those of klein-base-4b here"]),
        (
            {"settings": replace(CPU, device="cuda:1"), "provenance": {"cuda": "13", "torch": "1"}},
            {},
            ["torch: 1 then, 2.12 here"],
        ),
        ({"unknown": ("settings.x",)}, {}, ["it says settings.x, which this klein does not know"]),
    ],
)
def test_what_differs(then: dict[str, Any], now: dict[str, Any], lines: list[str]) -> None:
    model = now.get("model", RECIPE.model)
    origin = here(**{name: value for name, value in now.items() if name != "model"})
    assert list(differences(record(**then), model, origin)) == lines


@pytest.fixture
def with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])


@pytest.mark.usefixtures("with_a_gpu")
@pytest.mark.parametrize(
    ("then", "given", "liked", "device"),
    [
        ("cuda:1", {}, None, "cuda"),
        ("cuda", {}, "cuda:1", "cuda:1"),
        ("cuda", {}, "cpu", "cuda"),
        ("cpu", {}, "cuda", "cpu"),
        ("cuda", {"device": "cpu"}, "cuda:1", "cpu"),
        ("cpu", {"device": "cuda:1"}, None, "cuda:1"),
    ],
)
def test_the_picture_says_which_kind_of_device_and_the_user_which_one(
    then: str, given: dict[str, str], liked: str | None, device: str
) -> None:
    found, lines = settings_here(replace(CPU, device=then), given, liked, TINY)
    assert (found.device, lines) == (device, [])


def test_what_cannot_run_here_is_replaced_where_a_machine_may_choose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu = Settings(
        device="cuda",
        dtype="bfloat16",
        attention="flash-attn",
        kernels="triton",
        quantize="fp8",
    )
    found, lines = settings_here(gpu, {}, None, TINY)
    assert found == Settings(device="cpu", dtype="bfloat16", attention="sdpa", kernels="torch")
    assert lines == [
        "device: cuda then, and there is no GPU here",
        "attention: flash-attn then, sdpa here",
        "kernels: triton then, torch here",
        "quantize: fp8 then, none here",
    ]
    eager = replace(gpu, attention="eager")
    assert settings_here(eager, {}, None, TINY)[0].attention == "eager", "a CPU has that too"
    with pytest.raises(ModelError, match="no GPU was found"):
        settings_here(gpu, {}, None, presets()["klein-4b"])
    with pytest.raises(UsageError, match="flash-attn"):
        settings_here(CPU, {"attention": "flash-attn"}, None, TINY)
    with pytest.raises(UsageError, match="--rng cuda"):
        settings_here(replace(gpu, rng="cuda"), {}, None, TINY)
    assert settings_here(replace(gpu, rng="cuda"), {"rng": "cpu"}, None, TINY)[0].rng == "cpu"


@pytest.mark.parametrize("then", ["", "0", "-1", "1e3", "²", "9" * 9, "1000000", "two"])
def test_threads_that_make_no_sense_are_left_alone(then: str) -> None:
    before = torch.get_num_threads()
    with as_many_threads(record(provenance={"threads": then})):
        assert torch.get_num_threads() == before


def test_threads_are_as_many_as_then_and_put_back_after_an_error() -> None:
    before = torch.get_num_threads()
    then = 1 if before > 1 else min(2, 4 * (os.cpu_count() or 1))
    inside = []

    def fail() -> None:
        with as_many_threads(record(provenance={"threads": str(then)})):
            inside.append(torch.get_num_threads())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == [then]
    assert torch.get_num_threads() == before
