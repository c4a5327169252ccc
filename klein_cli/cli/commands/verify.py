"""`klein verify`: our engine beside the official pipeline, on this machine and these weights.

Everything that can be refused is refused before torch is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from klein_cli.check.prompts import PROMPTS
from klein_cli.checkpoints.given import Wanted
from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.checkpoints.resolve import preset_for, resolve
from klein_cli.checkpoints.single_file import OPTIONS
from klein_cli.cli import options
from klein_cli.cli.groups import grouped
from klein_cli.cli.terminal.report import Report
from klein_cli.device.packages import check_official
from klein_cli.errors import KleinError, UsageError
from klein_cli.output.png import check_writable, save
from klein_cli.presets import DEFAULT_MODEL, Preset
from klein_cli.prompts.rows import Defaults, Inputs, Row, recipe_of
from klein_cli.recipe import Recipe
from klein_cli.run.executors.start import check_adapters
from klein_cli.run.interrupts import defer_interrupts
from klein_cli.settings import Settings

if TYPE_CHECKING:
    from klein_cli.check.verify import Comparison

_LONGEST_TITLE = 60
_REPORT = "Reporting"

Clip = Annotated[
    Path | None,
    typer.Option(
        "--clip",
        metavar="FOLDER",
        help="Compare the images by this CLIP model too (openai/clip-vit-large-patch14).",
        rich_help_panel=_REPORT,
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write a page with the images next to each other and their difference.",
        rich_help_panel=_REPORT,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        "-s",
        metavar="N",
        help="The first image's seed; the next gets N+1, and so on.",
        rich_help_panel="The image",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        "-y",
        metavar=" ",
        help="Replace the page if there is one.",
        rich_help_panel=_REPORT,
    ),
]


@grouped(
    leave_out=("workers", "ray", "server"),
    helps={
        "json": "One JSON event a line on standard output: every number, and the verdict.",
        "quiet": "Only the verdict.",
    },
)
def verify(
    *,
    model: options.Model = DEFAULT_MODEL,
    parts: options.PartOptions,
    lora: options.Lora = None,
    machine: options.MachineOptions,
    size: options.Size = None,
    steps: options.Steps = None,
    seed: Seed = 0,
    clip: Clip = None,
    html: Html = None,
    overwrite: Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Prove that klein computes what the official model computes: exit code 0 if so, 1 if not.

    Draws a fixed set of prompts and edits with klein and with diffusers' pipelines for FLUX.2
    [klein], on the same weights, images and noise, and compares the text embeddings, the latents
    after every step and the images. --dtype float32 sees the smallest mistake.
    """
    report = Report(as_json=json, quiet=quiet, verbose=False, silent_stdout=json)
    with report.errors():
        check_official("klein verify")
        settings, batch_size = machine.settings(), machine.images_per_batch()
        asked = parts.wanted(model)
        for note in asked.notes:
            report.warn(note)
        preset = preset_for(asked.model)
        adapters = AdapterStore(parts.adapters_dir())
        inputs = Inputs(adapters=adapters.named(lora or (), downloading=report.downloading))
        adapters.check_size(asked.model)
        defaults = options.ImageOptions(size=size, steps=steps).defaults(preset)
        recipes = _recipes(defaults, seed, inputs)
        if clip is not None and not clip.is_dir():
            raise UsageError(f"there is no folder {clip}", "give --clip the folder of a CLIP model")
        if html is not None:
            _check_page(html, overwrite)
        with report.bar:
            report.bar.say("starting torch")
            facts, comparisons = _compare(
                asked, preset, settings, recipes, adapters, batch_size, clip, report
            )
        if html is not None:
            _write_page(html, facts, comparisons, overwrite)
    passed = all(comparison.passed for comparison in comparisons)
    if json:
        for comparison in comparisons:
            report.event("compared", **_event(comparison))
        report.event("verified", passed=passed, facts=facts)
    else:
        typer.echo("\n".join(_lines(facts, comparisons, in_short=quiet)))
    raise typer.Exit(0 if passed else 1)


def _recipes(defaults: Defaults, first_seed: int, inputs: Inputs) -> list[Recipe]:
    return [
        recipe_of(Row(prompt=prompt), defaults, seed, inputs)
        for seed, prompt in enumerate(PROMPTS, start=first_seed)
    ]


def _compare(
    asked: Wanted,
    preset: Preset,
    settings: Settings,
    recipes: Sequence[Recipe],
    adapters: AdapterStore,
    batch_size: int | None,
    clip: Path | None,
    report: Report,
) -> tuple[dict[str, str], list[Comparison]]:
    """What was compared, and the comparisons: here torch is imported."""
    with defer_interrupts():
        from klein_cli.check.clip import clip_likeness
        from klein_cli.check.edits import edits
        from klein_cli.check.verify import verify as compare
        from klein_cli.check.verify import versions
        from klein_cli.images.store import ImageStore
        from klein_cli.pipeline import choose

    chosen = choose(settings, preset)
    with report.downloading() as watch:
        snapshot = resolve(asked.model, watch, asked.parts)
    check_adapters(adapters, snapshot, report)
    likeness = None if clip is None else clip_likeness(clip)
    images = ImageStore()
    if chosen.engine == "native" or not preset.kv_cache:
        recipes = [*recipes, *edits(recipes[0], images, masks=not preset.kv_cache)]
    comparisons = compare(
        snapshot,
        chosen,
        recipes,
        images=images,
        adapters=adapters,
        batch_size=batch_size,
        likeness=likeness,
        on_event=report.bar.say,
    )
    first = recipes[0]
    facts = {
        "model": asked.model + (f" at {snapshot.revision}" if snapshot.revision else ""),
        **{OPTIONS[part].lstrip("-"): path for part, path in asked.parts.items()},
        **({"lora": ", ".join(lora)} if (lora := _weighed(first)) else {}),
        "ours": f"engine {chosen.engine}, "
        + chosen.listed(leave_out=("device", "dtype", "engine")),
        "both": f"{chosen.device}, {chosen.dtype}, {first.width}x{first.height}, "
        f"{first.steps} steps",
        "clip": str(clip) if clip else "not compared: no --clip FOLDER",
        **versions(chosen),
    }
    return facts, comparisons


def _weighed(recipe: Recipe) -> list[str]:
    """The adapters that all are drawn with."""
    return [f"{adapter.name} {adapter.weight:g}" for adapter in recipe.adapters]


def _check_page(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "give --html the name of a file")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists", "-y replaces it; or give another name")
    check_writable(path.parent)


def _write_page(
    path: Path, facts: dict[str, str], comparisons: Sequence[Comparison], overwrite: bool
) -> None:
    from klein_cli.check.page import page

    try:
        save(page(facts, comparisons).encode(), path, overwrite=overwrite)
    except OSError as error:
        raise KleinError(
            f"cannot write {path}: {error.strerror or error}", "give --html another name"
        ) from None


def _lines(
    facts: dict[str, str], comparisons: Sequence[Comparison], *, in_short: bool
) -> Iterator[str]:
    if not in_short:
        yield from (f"{name}: {fact}" for name, fact in facts.items())
        for comparison in comparisons:
            yield from _lines_of(comparison)
        yield ""
    good = sum(comparison.passed for comparison in comparisons)
    verdict = "the same" if good == len(comparisons) else "NOT the same"
    yield f"klein and diffusers: {verdict} ({good} of {len(comparisons)} images)"


def _lines_of(comparison: Comparison) -> Iterator[str]:
    title = " ".join(comparison.recipe.prompt.split())
    title = title if len(title) <= _LONGEST_TITLE else title[: _LONGEST_TITLE - 1] + "…"
    yield f'\n"{title}" ({comparison.length} of 512 positions{_given(comparison.recipe)})'
    for measure in comparison.measures:
        value, limit = measure.words()
        mark = "" if measure.passed else "  TOO FAR"
        yield f"  {measure.part:<24} {measure.name:<14} {value:>9}  {limit}{mark}"


def _given(recipe: Recipe) -> str:
    """What a recipe has besides words."""
    if not recipe.references:
        return ""
    sizes = ", ".join(f"{each.width}x{each.height}" for each in recipe.references)
    return f", image {sizes}" + (", masked" if recipe.mask else "")


def _event(comparison: Comparison) -> dict[str, Any]:
    measures = [
        {
            **asdict(measure),
            "value": measure.value if math.isfinite(measure.value) else str(measure.value),
            "passed": measure.passed,
        }
        for measure in comparison.measures
    ]
    return {
        "prompt": comparison.recipe.prompt,
        "seed": comparison.recipe.seed,
        "tokens": comparison.length,
        "references": [[each.width, each.height] for each in comparison.recipe.references],
        "masked": comparison.recipe.mask is not None,
        "passed": comparison.passed,
        "measures": measures,
    }
