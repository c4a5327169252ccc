"""`klein edit` as it is typed; `klein_cli.cli.generation` does it.

What that needs is imported when it runs: --help and a refused option come without.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from klein_cli.cli import options
from klein_cli.cli.groups import grouped
from klein_cli.presets import DEFAULT_MODEL

Edited = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help='The image to edit; "-" reads it from standard input; of a folder, each image in it '
        "is edited by itself, into the folder that -o names.",
        show_default=False,
        rich_help_panel="What to draw",
    ),
]


@grouped(
    helps={
        "prompt": 'What to change, in quotes. "-" reads it from standard input.',
        "prompt_option": "What to change, as an option.",
        "prompts_file": "Many changes of the one image: a .txt file with one a line, or .jsonl or "
        '.csv rows as for klein generate. "-" reads them from standard input.',
        "references": "A further image to go by; again for more, up to 4 with the first, in order.",
        "output": 'As of klein generate: a file, a folder, a template, or "-" for standard output. '
        "With a folder of images, the folder to write to.",
    },
)
def edit(
    context: typer.Context,
    *,
    edited: Edited,
    prompts: options.PromptOptions,
    strict: options.Strict = False,
    editing: options.EditOptions,
    image: options.ImageOptions,
    files: options.OutputOptions,
    keep_format: options.KeepFormat = False,
    opaque: options.Opaque = False,
    model: options.Model = DEFAULT_MODEL,
    parts: options.PartOptions,
    lora: options.Lora = None,
    machine: options.MachineOptions,
    show: options.Show = False,
    reporting: options.ReportOptions,
) -> None:
    """Change an image by words, or each image of a folder.

    klein edit photo.jpg "make the car red"

    The result has the image's shape, at about a megapixel. With --mask only a part is repainted,
    and the result has the image's own size.
    """
    from klein_cli.cli.editing import Edit
    from klein_cli.cli.generation import run_generate

    code = run_generate(
        context,
        edit=Edit(image=os.path.expanduser(edited), keep_format=keep_format, opaque=opaque),
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
