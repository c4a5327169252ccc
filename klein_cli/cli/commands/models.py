"""`klein models`: which models there are, which are here, and fetching and removing them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from klein_cli.checkpoints.folder import problems, size_on_disk
from klein_cli.checkpoints.hub.cache import (
    bytes_of,
    cache_folder,
    cached,
    check_cache,
    remove,
    repositories,
)
from klein_cli.checkpoints.resolve import hub_repository, on_disk, preset_for, pull
from klein_cli.cli.terminal.download_bar import DownloadBar
from klein_cli.cli.terminal.report import Report
from klein_cli.cli.terminal.text import gigabytes, home_as_tilde, table
from klein_cli.errors import ModelError, UsageError
from klein_cli.presets import Preset, presets
from klein_cli.run.interrupts import exit_code_of

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A model's name, or a hub id (owner/name).", show_default=False
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", metavar=" ", help="One JSON object a line on standard output."),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", metavar=" ", help="Only the result, warnings and errors.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", metavar=" ", help="Do not ask.")]


class _Models(TyperGroup):
    """`klein models` alone, and with options, is `klein models list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_list = not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        if is_list and not ctx.resilient_parsing:
            args = ["list", *args]
        return super().parse_args(ctx, args)


models = typer.Typer(
    name="models",
    cls=_Models,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@models.callback()
def _models() -> None:
    """List the models: licence, size, whether they are on this machine, memory.

    Models lie in the Hugging Face cache, which other programs share; HF_HOME moves it.
    """


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """The same as klein models alone, options included."""
    report = Report(as_json=as_json, quiet=False, verbose=False, silent_stdout=False)
    place = home_as_tilde(cache_folder())
    try:
        check_cache()
    except ModelError as error:
        report.warn(f"{error.message}: {error.hint}")
    entries = list(_entries())
    if as_json:
        for entry in entries:
            report.event("model", **entry)
        return
    head = ("NAME", "ON DISK", "SIZE", "GPU MEMORY", "LICENCE", "WHAT IT IS")
    rows = [head, *(_row(entry) for entry in entries)]
    lines = table(rows).splitlines()
    if sys.stdout.isatty():
        # What it is comes last: a narrow window loses the end of that, and keeps its columns.
        lines = [_cut(line, shutil.get_terminal_size().columns) for line in lines]
    typer.echo("\n".join(lines))
    typer.echo(
        f"\nGPU memory is that of the weights in bfloat16; images take some more.\n"
        f"Models lie in {place}"
    )


@models.command("pull")
def pull_model(name: Name, quiet: Quiet = False, as_json: Json = False) -> None:
    """Fetch a model, or what is missing or damaged of it, and check every file's hash.

    Goes on where an earlier download broke off. Prints the model's folder.
    """
    report = Report(as_json=as_json, quiet=quiet, verbose=False, silent_stdout=False)
    with _noting_interrupt(report):
        repo = hub_repository(name)
        if repo is None:
            preset_for(name)
            report.note(f"{name} needs no download")
        else:
            _report_licence(preset_for(name), repo, report)
        with DownloadBar(report, shown=report.bar.shown) as watch:
            snapshot = pull(name, watch)
        report.event("pulled", name=name, revision=snapshot.revision, path=str(snapshot.root))
    if not as_json:
        typer.echo(str(snapshot.root))


@models.command("path")
def path_of_model(name: Name) -> None:
    """Print the folder of a model that is wholly on this machine."""
    found = on_disk(name)
    if found is None:
        here = bytes_of(hub_repository(name) or "")
        what = "only partly" if here else "not"
        raise ModelError(
            f"{name} is {what} on this machine", f"to fetch it: klein models pull {name}"
        )
    wrong = problems(found.root)
    if wrong:
        raise ModelError(
            f"{name} is not whole: {wrong[0]}", "copy it there again, or give another folder"
        )
    typer.echo(str(found.root))


@models.command("rm")
def remove_model(name: Name, yes: Yes = False, quiet: Quiet = False) -> None:
    """Remove a model from this machine: all of it in the Hugging Face cache, and nothing else."""
    repo = hub_repository(name)
    if repo is None:
        what = "is part of klein" if name in presets() else "is a folder of yours"
        raise UsageError(f"{name} {what}", "klein removes only what it downloaded")
    held = bytes_of(repo)
    if not held:
        raise ModelError(f"{name} is not on this machine", "klein models lists what is")
    size = gigabytes(held)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"removing {name} ({size}) needs confirmation", "give -y")
        typer.confirm(
            f"Remove {size} of {repo}, for other programs that use it too?", abort=True, err=True
        )
    remove(repo)
    if not quiet:
        typer.echo(f"removed {repo}: {size}", err=True)


def _entries() -> Iterator[dict[str, Any]]:
    """The presets, then other models of this kind in the cache."""
    for preset in presets().values():
        yield _entry(preset.name, preset)
    known = {preset.repo.lower() for preset in presets().values()}
    for repo in _others():
        if repo.lower() not in known:
            try:
                yield _entry(repo, preset_for(repo))
            except ModelError:
                # The cache is shared: most of what lies there is not for klein.
                continue


def _others() -> Iterator[str]:
    """What is in the cache, nothing where it cannot be read."""
    with suppress(ModelError):
        yield from repositories()


def _entry(name: str, preset: Preset) -> dict[str, Any]:
    """A line of the list. Sizes in bytes, memory in GB; None where it is not known."""
    repo = hub_repository(name)
    if repo is None:
        found = on_disk(name)
        root = found.root if found else None
        state, held = "whole", size_on_disk(root) if root else 0
    else:
        root, held, state = _cached(repo)
    return {
        "name": name,
        "description": preset.description,
        "licence": preset.licence,
        "free": preset.free,
        "repo": repo,
        "state": state,
        "size_on_disk": held,
        "download_gb": preset.download_gb,
        "memory_gb": preset.memory_gb,
        "path": str(root) if root and state == "whole" else None,
    }


def _cached(repo: str) -> tuple[Path | None, int, str]:
    """Where a model of the cache lies, its bytes, and how much of it is there."""
    try:
        root, held = cached(repo), bytes_of(repo)
    except ModelError:
        return None, 0, "unreadable"
    whole = root is not None and not problems(root)
    return root, held, "whole" if whole else "partly" if held else "absent"


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    download, memory, held = entry["download_gb"], entry["memory_gb"], entry["size_on_disk"]
    if entry["state"] == "whole":
        here, size = "yes", gigabytes(held)
    else:
        unsure = {"partly": f"{gigabytes(held)} of it", "unreadable": "unknown"}
        here = unsure.get(entry["state"], "no")
        size = "unknown" if download is None else f"{download:.1f} GB"
    shown = "unknown" if memory is None else f"{memory:.3g} GB"
    return entry["name"], here, size, shown, entry["licence"], entry["description"]


def _cut(line: str, columns: int) -> str:
    return line if len(line) <= columns else line[: columns - 1] + "…"


def _report_licence(preset: Preset, repo: str, report: Report) -> None:
    page = f"https://huggingface.co/{repo}"
    if preset.name not in presets():
        report.note(f"the licence of {repo}: {page}")
    elif not preset.free:
        report.warn(f"{preset.name} is not free: its licence is {preset.licence}, see {page}")


@contextmanager
def _noting_interrupt(report: Report) -> Iterator[None]:
    """Under --json an error is an event too; an interrupt loses nothing, which is worth saying."""
    try:
        with report.errors():
            yield
    except KeyboardInterrupt as interrupt:
        report.event("interrupted", made=0, wanted=None)
        report.note("interrupted: what was downloaded is kept, and the next pull resumes there")
        raise typer.Exit(exit_code_of(interrupt)) from None
