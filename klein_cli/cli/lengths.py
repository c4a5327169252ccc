"""Are the prompts too long for the model? Known before it loads, with its tokenizer alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.cli.terminal.report import Report
from klein_cli.errors import UsageError
from klein_cli.run.jobs import Job
from klein_cli.text.tokenizer import PromptTokenizer, TokenizedPrompt

_WARNINGS = 5
_REMEMBERED = 64


def tokenizer_of(snapshot: Snapshot) -> Callable[[str], TokenizedPrompt]:
    """How the model reads a prompt; equal ones that lie near each other are read once."""
    return lru_cache(_REMEMBERED)(PromptTokenizer.from_snapshot(snapshot.root).tokenize)


def check_lengths(
    tokenize: Callable[[str], TokenizedPrompt],
    jobs: Iterable[Job],
    *,
    several: bool,
    strict: bool,
    report: Report,
) -> None:
    """Warn of prompts that are cut, each once; if `strict`, raise a UsageError that names them."""
    cut: set[int] = set()
    said: list[str] = []
    for job, text in _texts(jobs):
        warning = tokenize(text).warning()
        if warning is None or hash(text) in cut:
            continue
        if several:
            warning = f"picture {job.index}: {warning}"
        cut.add(hash(text))
        if len(cut) > _WARNINGS:
            continue
        said.append(warning)
        if not strict:
            report.warn(warning)
    if len(cut) > _WARNINGS:
        said.append(f"{len(cut) - _WARNINGS} more prompts are too long")
        if not strict:
            report.warn(said[-1])
    if strict and said:
        raise UsageError("\n  ".join(said), "shorten them, or leave out --strict")


def _texts(jobs: Iterable[Job]) -> Iterator[tuple[Job, str]]:
    for job in jobs:
        yield job, job.recipe.prompt
        if job.recipe.negative_prompt:
            yield job, job.recipe.negative_prompt
