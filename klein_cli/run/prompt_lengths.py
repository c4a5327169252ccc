"""Are the prompts too long for the model? Known before it loads, with its tokenizer alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from klein_cli.errors import UsageError
from klein_cli.run.events import Listener
from klein_cli.run.jobs import Job
from klein_cli.text.tokenizer import TokenizedPrompt

_WARNINGS = 5


def check_lengths(
    tokenize: Callable[[str], TokenizedPrompt],
    jobs: Iterable[Job],
    *,
    several: bool,
    strict: bool,
    listener: Listener,
) -> None:
    """Warn of prompts that are cut, each once; if `strict`, raise a UsageError that names them."""
    cut: set[int] = set()
    warnings: list[str] = []
    for job, text in _texts(jobs):
        warning = tokenize(text).warning()
        if warning is None or hash(text) in cut:
            continue
        if several:
            warning = f"image {job.index}: {warning}"
        cut.add(hash(text))
        if len(cut) > _WARNINGS:
            continue
        warnings.append(warning)
        if not strict:
            listener.warn(warning)
    if len(cut) > _WARNINGS:
        warnings.append(f"{len(cut) - _WARNINGS} more prompts are too long")
        if not strict:
            listener.warn(warnings[-1])
    if strict and warnings:
        raise UsageError("\n  ".join(warnings), "shorten them, or leave out --strict")


def _texts(jobs: Iterable[Job]) -> Iterator[tuple[Job, str]]:
    for job in jobs:
        yield job, job.recipe.prompt
        if job.recipe.negative_prompt:
            yield job, job.recipe.negative_prompt
