"""Rows -> Recipes: what a line says, what it leaves to the options, and how many images it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from typing import Any, Protocol

from klein_cli.errors import UsageError
from klein_cli.presets import Preset
from klein_cli.prompts.sizes import edited_size
from klein_cli.prompts.wildcard_files import WildcardFiles
from klein_cli.prompts.wildcards import chosen
from klein_cli.recipe import Adapter, Mask, Recipe, Reference, check_guidance

MAX_IMAGES = 1_000_000

_INVISIBLE = (
    ("\0", "a zero character", "take it out"),
    ("\ufeff", "a byte order mark", "take it out; files put together leave one between them"),
)
"""What no prompt means, and what a tokenizer would read all the same."""

_OF_GUIDANCE = ("guidance", "negative_prompt")
LEFT_OPEN = ("width", "height", "steps", "guidance", "negative_prompt")
"""What a row may leave to the options, and these to the preset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a prompts file: a prompt and what it says for itself; None means unsaid.

    `line` counts from 1; 0 is a prompt that was typed at the shell. `image` are files as they are
    written, `mask` a file or `recipe.ALPHA`; `expand` are pixels at the left, top, right and
    bottom; `lora` are adapters as they are written. `name` is what a folder of edits calls its
    image: unlike `output`, nothing that the row is known by. `id` is for templates of names, and
    `carried` for others: both go into the manifest.
    """

    prompt: str
    line: int = 0
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    output: str | None = None
    n: int | None = None
    image: tuple[str, ...] | None = None
    mask: str | None = None
    expand: tuple[int, int, int, int] | None = None
    lora: tuple[str, ...] | None = None
    name: str | None = None
    id: str | None = None
    carried: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The images and adapters of a row as its recipe has them: `klein_cli.run.inputs` finds the
    ones and `klein_cli.run.adapters` the others.
    """

    references: tuple[Reference, ...] = ()
    mask: Mask | None = None
    adapters: tuple[Adapter, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a recipe gets where its row is silent: from the options, and where these are None too,
    from the model's `preset`. Raises UsageError for a value that no image can have.

    `seeds` sweeps: every prompt that says neither seed nor n is drawn once with each of them.
    With `wildcards`, groups such as {a|b} in a prompt are chosen by each image's seed, and __name__
    from `wildcard_files`. `image`, `mask`, `expand` and `lora` are as in a row; a mask's edge is
    softened inward by `blur` pixels, and what it does not cover stays as it was unless `keep` is
    false.
    """

    preset: Preset
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    n: int = 1
    seeds: tuple[range, ...] = ()
    wildcards: bool = False
    wildcard_files: WildcardFiles | None = None
    image: tuple[str, ...] = ()
    mask: str | None = None
    expand: tuple[int, int, int, int] | None = None
    keep: bool = True
    blur: int = 0
    lora: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_IMAGES:
            raise UsageError(f"--num-images {self.n} is out of range", f"use 1 to {MAX_IMAGES}")
        if self.guidance is not None:
            check_guidance(self.guidance)
        fault = text_fault("--negative-prompt", self.negative_prompt or "")
        if fault:
            raise UsageError(*fault)


class Guided(Protocol):
    """What may ask for guidance: a row, options, a recipe."""

    @property
    def guidance(self) -> float | None: ...

    @property
    def negative_prompt(self) -> str | None: ...


def ignored(asked: Guided, preset: Preset) -> tuple[str, ...]:
    """The names of what is asked for and the model ignores: a distilled one has no guidance."""
    if not preset.distilled:
        return ()
    return tuple(name for name in _OF_GUIDANCE if getattr(asked, name) is not None)


def own_seeds(row: Row, defaults: Defaults) -> Iterator[int | None]:
    """One entry an image of the row, in order: its seed, or None where it takes the run's.

    A row with seed s and n images makes s, s + 1, ... Raises UsageError when the row and a
    sweep both say how many images there are.
    """
    if defaults.seeds and row.seed is None:
        if row.n is not None:
            raise UsageError("n and --seeds both say how many images", "leave one of them out")
        return chain.from_iterable(defaults.seeds)
    silent = 1 if defaults.seeds else defaults.n
    count = silent if row.n is None else row.n
    return repeat(None, count) if row.seed is None else iter(range(row.seed, row.seed + count))


def makes_several(row: Row, defaults: Defaults) -> bool:
    """Whether a row is more than one image. Raises UsageError as `own_seeds` does."""
    return len(list(islice(own_seeds(row, defaults), 2))) > 1


def asked_for(row: Row, defaults: Defaults, inputs: Inputs) -> dict[str, Any]:
    """A recipe's fields for a row, but for the seed, and with the prompt as it is written.

    Raises UsageError when the size that is asked for does not go with the images.
    """
    preset = defaults.preset
    asked: dict[str, Any] = {"prompt": row.prompt, "model": preset.name}
    for name in LEFT_OPEN:
        said = (getattr(by, name) for by in (row, defaults) if name not in ignored(by, preset))
        asked[name] = next((value for value in said if value is not None), None)
    asked |= _size(inputs, preset, asked["width"], asked["height"])
    asked |= {name: getattr(preset, name, None) for name in LEFT_OPEN if asked[name] is None}
    if inputs.references:
        asked |= {"references": inputs.references, "mask": inputs.mask}
    if inputs.adapters:
        asked["adapters"] = inputs.adapters
    return asked


def _size(
    inputs: Inputs, preset: Preset, width: int | None, height: int | None
) -> dict[str, int | None]:
    """The sides that are asked for, or follow from what is edited; None leaves them open."""
    if inputs.mask is not None:
        if (width, height) != (None, None):
            raise UsageError(
                "a size and a mask cannot be combined: the image keeps its own", "leave one out"
            )
        width, height = inputs.references[0].width, inputs.references[0].height
    elif inputs.references:
        first = inputs.references[0]
        width, height = edited_size((first.width, first.height), preset, width=width, height=height)
    return {"width": width, "height": height}


def recipe_of(row: Row, defaults: Defaults, seed: int, inputs: Inputs = Inputs()) -> Recipe:
    """One image of the row.

    Raises UsageError when a value cannot make an image, or not one of this model.
    """
    asked = asked_for(row, defaults, inputs)
    if defaults.wildcards:
        asked["prompt"] = chosen(row.prompt, seed, defaults.wildcard_files)
        fault = prompt_fault(asked["prompt"])
        if fault:
            raise UsageError(*fault)
    recipe = Recipe(**asked, seed=seed)
    if recipe.mask is None:  # else the size is the image's own
        _check_sides(recipe, defaults.preset)
    return recipe


def row_of(recipe: Recipe, preset: Preset) -> dict[str, Any]:
    """What a row says of a recipe, but for its images, so that the same model makes the same
    image of it.
    """
    said = {name: getattr(recipe, name) for name in ("prompt", "seed", *LEFT_OPEN)}
    unsaid = ignored(recipe, preset)
    if recipe.mask is not None:
        unsaid = (*unsaid, "width", "height")
    return {name: value for name, value in said.items() if value is not None and name not in unsaid}


def prompt_fault(prompt: str, *, drawn: bool = False) -> tuple[str, str] | None:
    """Why `prompt` cannot be used, as (message, hint), or None.

    One that was `drawn` already, by a klein that let invisible characters through, can be.
    """
    if not prompt.strip():
        return "the prompt is empty", "say what to draw"
    return unicode_fault("the prompt", prompt) if drawn else text_fault("the prompt", prompt)


def text_fault(name: str, text: str) -> tuple[str, str] | None:
    """Why `text`, called `name`, can be no words of a prompt, as (message, hint), or None."""
    for character, what, todo in _INVISIBLE:
        if character in text:
            at = text.index(character) + 1
            return f"{name} holds {what} (character {at})", todo
    return unicode_fault(name, text)


def unicode_fault(name: str, text: str) -> tuple[str, str] | None:
    """Why `text` is not Unicode, as `text_fault`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        what = f"{name} is not valid Unicode (character {error.start + 1})"
        return what, f"write {name} as UTF-8"
    return None


def _check_sides(recipe: Recipe, preset: Preset) -> None:
    for name, pixels in (("width", recipe.width), ("height", recipe.height)):
        if not preset.min_side <= pixels <= preset.max_side:
            raise UsageError(
                f"{name} {pixels} is out of range for {preset.name}",
                f"use {preset.min_side} to {preset.max_side}",
            )
