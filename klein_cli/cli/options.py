"""The options of `klein generate`, in the words that --help prints, grouped by intent.

One long list, a name an option, since it is read as one: to compare words, and to find a name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from klein_cli.presets import presets
from klein_cli.settings import ATTENTIONS, DEVICES, DTYPES, ENGINES, KERNELS, QUANTIZATIONS, RNGS

_PROMPT = "Prompts"
_PICTURE = "The picture"
_OUTPUT = "Where it goes"
_MACHINE = "Model and machine"
_REPORT = "What is said"
_FLAG = " "


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    """For the shell: presets and what they are. Where none fits, it completes files itself."""
    return [
        (name, preset.description)
        for name, preset in presets().items()
        if name.startswith(incomplete)
    ]


def _one_of(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


Prompt = Annotated[
    str | None,
    typer.Argument(
        help='What to draw, in quotes. "-" reads one prompt from standard input.',
        metavar="PROMPT",
        show_default=False,
        rich_help_panel="What to draw",
    ),
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        "-p",
        metavar="PROMPT",
        help="What to draw, as an option.",
        rich_help_panel=_PROMPT,
    ),
]
PromptsFile = Annotated[
    str | None,
    typer.Option(
        "--prompts-file",
        metavar="FILE",
        help=(
            "Many prompts: a .txt file with one a line (# starts a comment), or .jsonl or .csv "
            "rows with prompt, seed, width, height, steps, guidance, negative_prompt, output, n. "
            '"-" reads prompts, or .jsonl rows, from standard input.'
        ),
        rich_help_panel=_PROMPT,
    ),
]
NegativePrompt = Annotated[
    str | None,
    typer.Option(
        "--negative-prompt",
        metavar="TEXT",
        help="What to stay away from. Only for models that use guidance: the base models.",
        rich_help_panel=_PROMPT,
    ),
]
Wildcards = Annotated[
    bool,
    typer.Option(
        "--wildcards",
        metavar=_FLAG,
        help="Of {red|green|blue} in a prompt, take one, chosen by the picture's seed.",
        rich_help_panel=_PROMPT,
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        metavar=_FLAG,
        help="Refuse a prompt that is too long for the model, where otherwise its end is cut off "
        "with a warning.",
        rich_help_panel=_PROMPT,
    ),
]

NumImages = Annotated[
    int,
    typer.Option(
        "--num-images",
        "-n",
        metavar="N",
        help="Pictures of each prompt, with seeds that follow each other.",
        rich_help_panel=_PICTURE,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        "-s",
        metavar="N",
        help="The first picture's seed; the next gets N+1, and so on. The same seed draws the same "
        "picture again. Random, and printed, if left out.",
        rich_help_panel=_PICTURE,
    ),
]
Seeds = Annotated[
    str | None,
    typer.Option(
        "--seeds",
        metavar="LIST",
        help="A sweep: every prompt once with each of these seeds, as in 1-20 or 3,7,100-110. Rows "
        "that say a seed keep it.",
        rich_help_panel=_PICTURE,
    ),
]
Width = Annotated[
    int | None,
    typer.Option(
        "--width",
        "-W",
        metavar="PIXELS",
        help="A multiple of 16. The model's own size if left out.",
        rich_help_panel=_PICTURE,
    ),
]
Height = Annotated[
    int | None,
    typer.Option(
        "--height",
        "-H",
        metavar="PIXELS",
        help="A multiple of 16.",
        rich_help_panel=_PICTURE,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="WxH", help="Both at once, as in 1024x768.", rich_help_panel=_PICTURE
    ),
]
Aspect = Annotated[
    str | None,
    typer.Option(
        "--aspect",
        metavar="W:H",
        help="A shape, as in 16:9, with about as many pixels as the model's own size.",
        rich_help_panel=_PICTURE,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        metavar="N",
        help="Denoising steps. The model knows best: 4, or 50 for the base models.",
        rich_help_panel=_PICTURE,
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        "-g",
        metavar="X",
        help="How closely the base models follow the prompt; the others ignore it. Also "
        "--guidance-scale, --cfg-scale.",
        rich_help_panel=_PICTURE,
    ),
]
# An option of its own, so that the long names do not widen every line of the help.
GuidanceScale = Annotated[
    float | None, typer.Option("--guidance-scale", "--cfg-scale", metavar="X", hidden=True)
]

OutputPath = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help=(
            "A file (.png, .jpg or .webp); a folder, which exists or ends in /; a template with "
            "{index} {seed} {slug} {width} {height} {model} {date}, as in "
            '"out/{index:04d}-{slug}.png"; or "-" for one PNG on standard output. '
            "{slug}-{seed}.png here if left out."
        ),
        rich_help_panel=_OUTPUT,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        "-y",
        metavar=_FLAG,
        help="Replace files that exist. Otherwise a named file is refused, and in a folder the "
        "next free name is taken.",
        rich_help_panel=_OUTPUT,
    ),
]
Gallery = Annotated[
    bool,
    typer.Option(
        "--gallery",
        metavar=_FLAG,
        help="Also write index.html: a page that shows all pictures of the output folder.",
        rich_help_panel=_OUTPUT,
    ),
]
NoMetadata = Annotated[
    bool,
    typer.Option(
        "--no-metadata",
        metavar=_FLAG,
        help="Leave the recipe out of the file: the same pixels, and nothing about them.",
        rich_help_panel=_OUTPUT,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        metavar=_FLAG,
        help="Go on with the run that was begun in the output folder: make only what is missing "
        "there or is no longer whole. The prompts file may have grown or been put in another "
        "order.",
        rich_help_panel=_OUTPUT,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        metavar=_FLAG,
        help="Print what would be made (names, seeds, sizes, prompt lengths, and how long it takes "
        "where that is known) and stop.",
        rich_help_panel=_OUTPUT,
    ),
]

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|DIR|REPO",
        help="klein-4b, klein-base-4b, klein-9b, klein-base-9b; tiny, which comes with klein and "
        "needs no GPU; a folder in the diffusers layout; or a hub id.",
        autocompletion=complete_model,
        rich_help_panel=_MACHINE,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cuda|cuda:N|cpu",
        help="Where to run.",
        autocompletion=_one_of(DEVICES),
        rich_help_panel=_MACHINE,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="|".join(DTYPES),
        help="Precision. auto is bfloat16 on a GPU and float32 on a CPU.",
        autocompletion=_one_of(DTYPES),
        rich_help_panel=_MACHINE,
    ),
]
BatchSize = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="auto|N",
        help="Pictures made at the same time. It changes the speed, and on a GPU perhaps a bit.",
        rich_help_panel=_MACHINE,
    ),
]
Workers = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N|auto",
        help="Processes that draw, each on a GPU of its own, or sharing the CPU; auto is one for "
        "each GPU.",
        rich_help_panel=_MACHINE,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Draw on a Ray cluster that is running already, as in auto or head:6379. Needs the "
        "extra: pip install 'klein-cli\\[ray]'.",
        rich_help_panel=_MACHINE,
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="|".join(ENGINES),
        help="Whose modules compute the picture.",
        autocompletion=_one_of(ENGINES),
        rich_help_panel=_MACHINE,
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        "--attention",
        metavar="|".join(ATTENTIONS),
        help="How the text encoder computes attention.",
        autocompletion=_one_of(ATTENTIONS),
        rich_help_panel=_MACHINE,
    ),
]
Rng = Annotated[
    str,
    typer.Option(
        "--rng",
        metavar="|".join(RNGS),
        help="Where noise is drawn: cpu means the same noise on every machine; cuda, the noise of "
        "the official code on a GPU.",
        autocompletion=_one_of(RNGS),
        rich_help_panel=_MACHINE,
    ),
]
Quantize = Annotated[
    str,
    typer.Option(
        "--quantize",
        metavar="|".join(QUANTIZATIONS),
        help="fp8 computes the transformer's large matrix products in 8 bits: half its memory, a "
        "little less exact, and quicker on the GPUs that can, Ada and Hopper and later.",
        autocompletion=_one_of(QUANTIZATIONS),
        rich_help_panel=_MACHINE,
    ),
]
Kernels = Annotated[
    str,
    typer.Option(
        "--kernels",
        metavar="|".join(KERNELS),
        help="Who computes between the matrix products: Triton's kernels are quicker. auto takes "
        "them where they can run.",
        autocompletion=_one_of(KERNELS),
        rich_help_panel=_MACHINE,
    ),
]

Json = Annotated[
    bool,
    typer.Option(
        "--json",
        metavar=_FLAG,
        help="One JSON event a line on standard output, instead of paths.",
        rich_help_panel=_REPORT,
    ),
]
Show = Annotated[
    bool,
    typer.Option(
        "--show",
        metavar=_FLAG,
        help="Show each picture in the terminal: kitty, iTerm2 and other sixel terminals; "
        "half-blocks elsewhere.",
        rich_help_panel=_REPORT,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        metavar=_FLAG,
        help="Only paths, warnings and errors.",
        rich_help_panel=_REPORT,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        metavar=_FLAG,
        help="Also what was chosen, and where the time went.",
        rich_help_panel=_REPORT,
    ),
]
