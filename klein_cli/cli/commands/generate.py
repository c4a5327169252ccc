"""`klein generate` as it is typed; `klein_cli.cli.generation` does it.

What that needs is imported when it runs: --help and a refused option come without.
"""

from __future__ import annotations

import typer

from klein_cli.cli import options
from klein_cli.cli.groups import grouped
from klein_cli.presets import DEFAULT_MODEL


@grouped()
def generate(
    context: typer.Context,
    *,
    prompts: options.PromptOptions,
    strict: options.Strict = False,
    editing: options.EditOptions,
    image: options.ImageOptions,
    files: options.OutputOptions,
    model: options.Model = DEFAULT_MODEL,
    parts: options.PartOptions,
    lora: options.Lora = None,
    machine: options.MachineOptions,
    show: options.Show = False,
    reporting: options.ReportOptions,
) -> None:
    """Draw images from words. Paths go to standard output, all else to standard error."""
    from klein_cli.cli.generation import run_generate

    code = run_generate(
        context,
        prompts=prompts,
        strict=strict,
        editing=editing,
        image=image,
        files=files,
        model=model,
        parts=parts,
        lora=lora,
        machine=machine,
        show=show,
        reporting=reporting,
    )
    raise typer.Exit(code)
