"""An image's record -> the same image again: what to draw, how, and what is not as it was then.

The record may be a stranger's. What it says of an image is used, within the bounds that hold for
everybody. What it says of a model is only looked up among klein's own that are on this machine
already: nothing is downloaded and no folder opened because an image names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from klein_cli.checkpoints.given import NO_PARTS, Parts
from klein_cli.checkpoints.resolve import Snapshot, already_here
from klein_cli.checkpoints.single_file import OPTIONS
from klein_cli.errors import ModelError, UsageError
from klein_cli.images.levels import strips
from klein_cli.output.metadata import Origin
from klein_cli.output.reading import Record, read_pixels
from klein_cli.presets import Preset, presets
from klein_cli.prompts.rows import LEFT_OPEN, Defaults, Row
from klein_cli.recipe import PartFile, Recipe
from klein_cli.settings import CHOICES, Settings

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

_UNIMPORTANT = ("python",)
"""Recorded, but no image is known to depend on it."""

_THREADS_A_CORE = 4
_SAME_LEVEL = 1e-6


def model_of(path: Path, record: Record, parts: Parts = NO_PARTS) -> Snapshot:
    """The model that the image at `path` names, if it is klein's own and on this machine.

    `parts` are the user's own files: those that the image names are not looked for. Raises
    ModelError with the way to say which model to use.
    """
    name = record.recipe.model
    lacking = next((one for one in record.parts if one.part not in parts), None)
    if lacking is not None:
        raise ModelError(
            f"{path} was made with the file {lacking.name} as its {lacking.part.replace('_', ' ')}",
            f"give it: {OPTIONS.get(lacking.part, '-m')} FILE; it is compared by its fingerprint",
        )
    if name not in presets():
        if record.repo is not None:
            raise ModelError(
                f"{path} was made with {record.repo}, which is not one of klein's own models",
                f"if you trust it: -m {record.repo}, which downloads it unless it is here",
            )
        raise ModelError(
            f"{path} was made with a folder called {name!r}", "say where it is: -m FOLDER"
        )
    snapshot = already_here(name, record.revision, parts)
    if snapshot is None:
        raise ModelError(
            f"{path} was made with {name}, which is not on this machine",
            f"-m {name} downloads it; -m tiny draws another image with what is here",
        )
    return snapshot


def row_of_recipe(then: Recipe, defaults: Defaults, *, prompt: str | None = None) -> Row:
    """A row for the image of a recipe, but for what `defaults` and `prompt` say instead of it.

    A model of the other kind (distilled, or base) keeps its own steps and guidance.
    """
    known = presets().get(then.model)
    is_other = known is not None and known.distilled != defaults.preset.distilled
    kept = [name for name in LEFT_OPEN if not (is_other and name in ("steps", "guidance"))]
    said = {name: getattr(then, name) for name in kept if getattr(defaults, name) is None}
    return Row(prompt=then.prompt if prompt is None else prompt, **said)


def settings_here(
    then: Settings, given: Mapping[str, str], device: str | None, preset: Preset
) -> tuple[Settings, list[str]]:
    """How to compute it here, and in which ways that is not what was done then.

    `given` are the user's own words; `device` is where they like to run if it is of the image's
    kind. Raises UsageError for what is not available here and changes the image beyond recognition.
    """
    import torch

    from klein_cli.device.choose import choose

    differences = []
    wanted = then.with_(**given)
    if "device" not in given:
        kind = then.device.partition(":")[0]
        if kind == "cuda" and not torch.cuda.is_available():
            differences.append("device: cuda then, and there is no GPU here")
            kind = "auto"
        here = device if device is not None and device.partition(":")[0] == kind else kind
        wanted = wanted.with_(device=here)
    if wanted.rng == "cuda" and "rng" not in given and not torch.cuda.is_available():
        raise UsageError(
            "the image's noise came from a GPU (--rng cuda), and there is none here",
            "--rng cpu draws another image from the same words",
        )
    # Where a machine is asked to choose, another choice makes nearly the same image, and so does
    # the model that is not quantised.
    free = {
        name: choice.words[0]
        for name, choice in CHOICES.items()
        if (choice.words[0] == "auto" or name == "quantize")
        and name not in ("device", "dtype", *given)
    }
    chosen = choose(_possible(wanted, free, preset), preset)
    for name in free:
        before, now = getattr(wanted, name), getattr(chosen, name)
        if before not in (now, "auto"):
            differences.append(f"{name}: {before} then, {now} here")
    return chosen, differences


def _possible(wanted: Settings, free: Mapping[str, str], preset: Preset) -> Settings:
    """`wanted` without those of its free fields that are not available here, tried one by one."""
    while (complaint := _complaint(wanted, preset)) is not None:
        without = (wanted.with_(**{name: other}) for name, other in free.items())
        better = (less for less in without if _complaint(less, preset) != complaint)
        found = next(better, None)
        if found is None:
            return wanted
        wanted = found
    return wanted


def _complaint(settings: Settings, preset: Preset) -> str | None:
    from klein_cli.device.choose import choose

    try:
        choose(settings, preset)
    except UsageError as error:
        return error.message
    return None


def differences(record: Record, model: str, here: Origin) -> Iterator[str]:
    """Line by line, what differs between then and here, where `model` is the name of what draws."""
    for name in record.unknown:
        yield f"it says {name}, which this klein does not know"
    if record.step_down:
        yield f"it was made with less memory than it needed: {record.step_down}"
    yield from _model_differences(record, model, here)
    same_kind = _kind(record.settings) == _kind(here.settings)
    for name, then in record.provenance.items():
        now = here.provenance.get(name)
        if now is None and not same_kind:
            continue
        if name == "diffusers" and record.settings.engine != "diffusers":
            continue
        if now != then and name not in _UNIMPORTANT:
            yield f"{name}: {then} then, {now or 'nothing'} here"


def schedule_differs(record: Record, levels: list[float]) -> bool:
    """Whether the image went down other noise levels than those of its recipe here."""
    pairs = zip(record.sigmas, levels, strict=False)
    return any(abs(then - now) > _SAME_LEVEL for then, now in pairs)


def _model_differences(record: Record, model: str, here: Origin) -> Iterator[str]:
    then = {one.part: one for one in record.parts}
    now = {one.part: one for one in here.model.parts}
    for part in dict.fromkeys((*then, *now)):
        if then.get(part) != now.get(part):
            before, after = (_file(each.get(part)) for each in (then, now))
            other = "; their weights differ" if part in then and part in now else ""
            yield f"{part.replace('_', ' ')}: {before} then, {after} here{other}"
    if then != now:
        return
    if record.weights is not None:
        if record.weights != here.model.weights:
            yield f"model: other weights than those of {model} here"
        return
    if record.recipe.model != model:
        yield f"model: {record.recipe.model} then, {model} here"
    elif record.revision != here.model.revision:
        yield f"model: revision {record.revision} then, {here.model.revision} here"


def _file(part: PartFile | None) -> str:
    return "the model's own" if part is None else f"{part.name} ({part.kind})"


def _kind(settings: Settings) -> str:
    return settings.device.partition(":")[0]


@contextmanager
def as_many_threads(record: Record) -> Iterator[None]:
    """Let torch use as many threads as then: on a CPU an image depends on it by a bit.

    Not where that is out of all proportion to the cores that are here.
    """
    import torch

    before = torch.get_num_threads()
    then = record.provenance.get("threads", "")
    most = _THREADS_A_CORE * (os.cpu_count() or 1)
    if then.isascii() and then.isdigit() and len(then) < 6 and 1 <= int(then) <= most:
        torch.set_num_threads(int(then))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """Two images of one size beside each other: pixels that differ, of how many, by how much."""

    differ: int
    pixels: int
    most: int


def likeness(
    drawn: Path, original: NDArray[numpy.uint8] | NDArray[numpy.uint16]
) -> Likeness | None:
    """The file `drawn` beside what `read_pixels` read; None when their sizes differ.

    `most` is in levels of 255, whatever the depth.
    """
    import numpy

    pixels = read_pixels(drawn)
    if pixels.shape != original.shape or pixels.dtype != original.dtype:
        return None
    differ = most = 0
    for rows in strips(len(pixels)):
        apart = numpy.abs(pixels[rows].astype(numpy.int32) - original[rows]).max(axis=2)
        differ, most = differ + int(numpy.count_nonzero(apart)), max(most, int(apart.max()))
    level = int(numpy.iinfo(pixels.dtype).max) // 255
    height, width = pixels.shape[:2]
    return Likeness(differ=differ, pixels=height * width, most=-(-most // level))
