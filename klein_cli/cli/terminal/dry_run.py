"""`klein generate --dry-run`: what would be made, without making it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta

from klein_cli.cli.terminal.report import Report
from klein_cli.cli.terminal.text import counted
from klein_cli.recipe import Shape, recorded_shape
from klein_cli.run.jobs import Job
from klein_cli.run.resume.history import History
from klein_cli.text.tokenizer import TokenizedPrompt

_GROUPS = 8


def dry_run(
    jobs: Iterable[Job],
    tokens: Callable[[Job], TokenizedPrompt | None],
    history: History | None,
    *,
    there: int = 0,
    workers: int = 1,
    report: Report,
) -> None:
    """Tell every image and then the whole, beside `there` images that exist.

    `tokens` gives an image's prompt as its model reads it, or None when the model is not here yet.
    How long it takes is known of such images as the manifest's history has seconds for.
    """
    groups: Counter[Shape] = Counter()
    unknown, seconds = 0, 0.0
    for job in jobs:
        report.planned(job, tokens(job))
        groups[job.recipe.shape] += 1
        one = history.seconds(job.recipe) if history else None
        unknown += one is None
        seconds += one or 0.0
    images = groups.total()
    known = seconds / workers if images > unknown else None
    report.event(
        "plan",
        pictures=images,
        there=there,
        groups=[{**recorded_shape(group), "pictures": count} for group, count in groups.items()],
        seconds=None if known is None or unknown else round(known, 1),
    )
    report.note(_summary(images, there, groups))
    if known is not None:
        about = timedelta(seconds=round(known))
        rest = f", and {unknown} of sizes that were not made here yet" if unknown else ""
        report.note(f"about {about}, as such images took in this folder before{rest}")


def _summary(images: int, there: int, groups: Counter[Shape]) -> str:
    sizes: Counter[tuple[int, int, int]] = Counter()  # whatever they are made of
    for group, count in groups.items():
        sizes[group.width, group.height, group.steps] += count
    parts = [
        f"{count} of {width}x{height}, {counted(steps, 'step')}"
        for (width, height, steps), count in sizes.most_common(_GROUPS)
    ]
    if len(sizes) > _GROUPS:
        parts.append(f"and {len(sizes) - _GROUPS} more sizes")
    whole = f"{counted(images, 'image')} to make"
    if there:
        whole += f", {there} there already"
    return f"{whole}: {'; '.join(parts)}" if len(sizes) > 1 or (there and sizes) else whole
