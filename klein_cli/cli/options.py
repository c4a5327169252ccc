"""The options of the commands, in the words that --help prints, grouped by intent.

One long list, since it is read as one: to compare words, and to find a name. The groups become
options in `klein_cli.cli.groups`; what they give is parsed here, once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from klein_cli.errors import UsageError
from klein_cli.paths import user_path
from klein_cli.presets import Preset, presets
from klein_cli.prompts.rows import Defaults
from klein_cli.prompts.seeds import parse_seeds
from klein_cli.prompts.sizes import image_size, parse_expand
from klein_cli.prompts.wildcard_files import WildcardFiles
from klein_cli.recipe import MAX_BLUR
from klein_cli.run.executors.placement import Placement
from klein_cli.settings import CHOICES, Settings

if TYPE_CHECKING:
    from klein_cli.checkpoints.given import Wanted
    from klein_cli.checkpoints.models_dir import ModelsDir

_prompt = partial(typer.Option, rich_help_panel="Prompts")
_prompt_flag = partial(_prompt, metavar=" ")
image_option = partial(typer.Option, rich_help_panel="The image")
_edit = partial(typer.Option, rich_help_panel="Images to edit")
_edit_flag = partial(_edit, metavar=" ")
_output = partial(typer.Option, rich_help_panel="Where it goes")
_output_flag = partial(_output, metavar=" ")
_machine = partial(typer.Option, rich_help_panel="Model and machine")
_report = partial(typer.Option, rich_help_panel="Reporting")
_report_flag = partial(_report, metavar=" ")
_DEFAULT = Settings()


def name_of(parameter: str) -> str:
    """An option as it is typed."""
    return f"--{parameter.replace('_', '-')}"


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


def _setting(name: str) -> Any:
    """The option of a field of Settings."""
    choice = CHOICES[name]
    return _machine(
        f"--{name}",
        metavar="|".join(choice.forms),
        help=choice.help,
        autocompletion=_one_of(choice.words),
    )


Strict = Annotated[
    bool,
    _prompt_flag(
        "--strict",
        help="Refuse a prompt that is too long for the model, where otherwise its end is cut off "
        "with a warning.",
    ),
]
Size = Annotated[
    str | None, image_option("--size", metavar="WxH", help="Both at once, as in 1024x768.")
]
Steps = Annotated[
    int | None,
    image_option(
        "--steps",
        metavar="N",
        help="Denoising steps. The model knows best: 4, or 50 for the base models.",
    ),
]
KeepFormat = Annotated[
    bool,
    _output_flag(
        "--keep-format",
        help="In a folder: write JPEG files for JPEG files, and WebP for WebP, not PNG. JPEG "
        "encodes also what a mask keeps again.",
    ),
]
Opaque = Annotated[
    bool,
    _output_flag(
        "--opaque",
        help="Leave a transparent image's alpha out of the result. Otherwise it comes back.",
    ),
]
Model = Annotated[
    str,
    _machine(
        "--model",
        "-m",
        metavar="NAME|DIR|FILE|REPO",
        help="klein-4b, klein-base-4b, klein-9b, klein-base-9b, klein-9b-kv; tiny, which comes "
        "with klein and needs no GPU; a folder in the diffusers layout; a file as for "
        "--transformer; or a hub id.",
        autocompletion=complete_model,
    ),
]
Lora = Annotated[
    list[str] | None,
    _machine(
        "--lora",
        metavar="FILE|REPO",
        help="A LoRA or another adapter, a .safetensors file or owner/name/file on the hub, with "
        "=WEIGHT if not 1, as in style.safetensors=0.8; again for more, in order.",
        show_default=False,
    ),
]
Json = Annotated[
    bool, _report_flag("--json", help="One JSON event a line on standard output, instead of paths.")
]
Show = Annotated[
    bool,
    _report_flag(
        "--show",
        help="Show each image in the terminal: kitty, iTerm2 and other sixel terminals; "
        "half-blocks elsewhere.",
    ),
]
Quiet = Annotated[bool, _report_flag("--quiet", "-q", help="Only paths, warnings and errors.")]
Verbose = Annotated[
    bool, _report_flag("--verbose", "-v", help="Also what was chosen, and where the time went.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """What to draw."""

    prompt: Annotated[
        str | None,
        typer.Argument(
            help='What to draw, in quotes. "-" reads one prompt from standard input.',
            metavar="PROMPT",
            show_default=False,
            rich_help_panel="What to draw",
        ),
    ] = None
    prompt_option: Annotated[
        str | None, _prompt("--prompt", "-p", metavar="PROMPT", help="What to draw, as an option.")
    ] = None
    prompts_file: Annotated[
        str | None,
        _prompt(
            "--prompts-file",
            metavar="FILE",
            help=(
                "Many prompts: a .txt file with one a line (# starts a comment), or .jsonl, .json, "
                ".csv or .tsv rows with prompt, seed, width, height, steps, guidance, "
                "negative_prompt, output, "
                "n, image, mask, expand, lora. "
                '"-" reads prompts, or .jsonl rows, from standard input.'
            ),
        ),
    ] = None
    negative_prompt: Annotated[
        str | None,
        _prompt(
            "--negative-prompt",
            metavar="TEXT",
            help="What to stay away from. Only for models that use guidance: the base models.",
        ),
    ] = None
    stream: Annotated[
        bool,
        _prompt_flag(
            "--stream",
            help="Draw each prompt as soon as it is read, from a pipe that need not end: with "
            "--prompts-file -.",
        ),
    ] = False
    prompt_column: Annotated[
        str | None,
        _prompt(
            "--prompt-column",
            metavar="NAME",
            help="The column, or key, of the prompts file that holds the prompt. If left out, the "
            "one called prompt. Columns that klein does not know go into the manifest.",
        ),
    ] = None
    options_in_prompts: Annotated[
        bool,
        _prompt_flag(
            "--options-in-prompts",
            help="Read options in the lines of a .txt file as AUTOMATIC1111 and InvokeAI do: "
            "--steps 4 --seed 9, or -s4 -S9.",
        ),
    ] = False
    wildcards: Annotated[
        bool,
        _prompt_flag(
            "--wildcards",
            help="Of {red|green|blue} in a prompt, take one, chosen by the image's seed; of "
            "{2$$a|b|c} two; weighted as in {0.5::a|b}.",
        ),
    ] = False
    wildcards_dir: Annotated[
        Path | None,
        _prompt(
            "--wildcards-dir",
            metavar="DIR",
            help="Of __colour__ in a prompt, take a line of DIR/colour.txt; implies --wildcards.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """What an image is like; None leaves it to the row, or else to the model."""

    seed: Annotated[
        int | None,
        image_option(
            "--seed",
            "-s",
            metavar="N",
            help="The first image's seed; the next gets N+1, and so on. The same seed draws the "
            "same image again. Random, and printed, if left out.",
        ),
    ] = None
    seeds: Annotated[
        str | None,
        image_option(
            "--seeds",
            metavar="LIST",
            help="A sweep: every prompt once with each of these seeds, as in 1-20 or 3,7,100-110. "
            "Rows that say a seed keep it.",
        ),
    ] = None
    num_images: Annotated[
        int,
        image_option(
            "--num-images",
            "-n",
            metavar="N",
            help="Images of each prompt, with seeds that follow each other.",
        ),
    ] = 1
    width: Annotated[
        int | None,
        image_option(
            "--width",
            "-W",
            metavar="PIXELS",
            help="A multiple of 16. The model's own size if left out.",
        ),
    ] = None
    height: Annotated[
        int | None, image_option("--height", "-H", metavar="PIXELS", help="A multiple of 16.")
    ] = None
    size: Size = None
    aspect: Annotated[
        str | None,
        image_option(
            "--aspect",
            metavar="W:H",
            help="A shape, as in 16:9, with about as many pixels as the model's own size.",
        ),
    ] = None
    steps: Steps = None
    guidance: Annotated[
        float | None,
        image_option(
            "--guidance",
            "-g",
            metavar="X",
            help="How closely the base models follow the prompt; the others ignore it. Also "
            "--guidance-scale, --cfg-scale.",
        ),
    ] = None
    # An option of its own, so that the long names do not widen every line of the help.
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", "--cfg-scale", metavar="X", hidden=True)
    ] = None

    @property
    def cfg(self) -> float | None:
        """The guidance that was asked for, by whichever of its names."""
        return self.guidance_scale if self.guidance is None else self.guidance

    def defaults(
        self,
        preset: Preset,
        *,
        negative_prompt: str | None = None,
        wildcards: bool = False,
        wildcards_dir: Path | None = None,
        like: tuple[int, int] | None = None,
    ) -> Defaults:
        """What rows get where they are silent; for `like` see `image_size`. Raises UsageError."""
        width, height = image_size(
            preset,
            width=self.width,
            height=self.height,
            size=self.size,
            aspect=self.aspect,
            like=like,
        )
        sweep = parse_seeds(self.seeds) if self.seeds is not None else ()
        if sweep and (self.seed is not None or self.num_images != 1):
            raise UsageError(
                "--seeds cannot be combined with --seed or --num-images", "use one of them"
            )
        return Defaults(
            preset=preset,
            width=width,
            height=height,
            steps=self.steps,
            guidance=self.cfg,
            negative_prompt=negative_prompt,
            n=self.num_images,
            seeds=sweep,
            wildcards=wildcards or wildcards_dir is not None,
            wildcard_files=None if wildcards_dir is None else WildcardFiles(wildcards_dir),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EditOptions:
    """What is edited, and where in it."""

    references: Annotated[
        list[str] | None,
        _edit(
            "--image",
            "-i",
            metavar="FILE",
            help="An image to edit or to go by: PNG, JPEG, WebP or TIFF; again for more, up to 4, "
            'in order. The result has the first one\'s size, at about a megapixel. "-" reads it '
            "from standard input.",
            show_default=False,
        ),
    ] = None
    mask: Annotated[
        str | None,
        _edit(
            "--mask",
            metavar="FILE|alpha",
            help="Repaint only what is white in this image, as large as the first one; all else "
            "stays, bit for bit. alpha repaints what the first image leaves transparent.",
        ),
    ] = None
    expand: Annotated[
        str | None,
        _edit(
            "--expand",
            metavar="N|L,T,R,B",
            help="Paint beyond the first image's edges: pixels for all, or left,top,right,bottom.",
        ),
    ] = None
    no_keep: Annotated[
        bool,
        _edit_flag(
            "--no-keep",
            help="Leave the rest as the model gives it back, not bit for bit: smoother seams.",
        ),
    ] = False
    mask_blur: Annotated[
        int | None,
        _edit(
            "--mask-blur",
            metavar="N",
            help="Soften the mask's edge inward, over so many pixels.",
        ),
    ] = None

    def of(self, defaults: Defaults) -> Defaults:
        """The defaults with what is edited in them. Raises UsageError for what cannot go
        together.
        """
        expand = None if self.expand is None else parse_expand(self.expand)
        masked = self.mask is not None or expand is not None
        sized = defaults.width is not None or defaults.height is not None
        if masked and sized:
            raise UsageError(
                f"{'--mask' if self.mask is not None else '--expand'} and a size exclude each "
                "other: the image keeps its own",
                "leave out the size",
            )
        if self.mask_blur is not None and not 0 <= self.mask_blur <= MAX_BLUR:
            raise UsageError(
                f"--mask-blur {self.mask_blur} is out of range", f"use 0 to {MAX_BLUR} pixels"
            )
        return replace(
            defaults,
            image=tuple(self.references or ()),
            mask=self.mask,
            expand=expand,
            keep=not self.no_keep,
            blur=self.mask_blur or 0,
        )

    def of_masks(self) -> tuple[str, ...]:
        """What was asked of a mask, as it is typed."""
        blur = () if self.mask_blur is None else ("--mask-blur",)
        return (*("--no-keep",) * self.no_keep, *blur)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Where the images go."""

    output: Annotated[
        str | None,
        _output(
            "--output",
            "-o",
            metavar="PATH",
            help=(
                "A file (.png, .jpg or .webp); a folder, which exists or ends in /; a template "
                "with {index} {seed} {slug} {width} {height} {model} {date} {row} {n} {id}, as in "
                '"out/{index:04d}-{slug}.png"; or "-" for one PNG on standard output. '
                "{slug}-{seed}.png here if left out."
            ),
        ),
    ] = None
    overwrite: Annotated[
        bool,
        _output_flag(
            "--overwrite",
            "-y",
            help="Replace files that exist. Otherwise a named file is refused, and in a folder the "
            "next free name is taken.",
        ),
    ] = False
    resume: Annotated[
        bool,
        _output_flag(
            "--resume",
            help="Resume the run in the output folder: make only what is missing there or damaged. "
            "The prompts file may have grown or been reordered.",
        ),
    ] = False
    gallery: Annotated[
        bool,
        _output_flag(
            "--gallery",
            help="Also write index.html: a page that shows all images of the output folder.",
        ),
    ] = False
    no_metadata: Annotated[
        bool,
        _output_flag(
            "--no-metadata",
            help="Leave the recipe out of the file: the same pixels, and nothing about them.",
        ),
    ] = False
    dry_run: Annotated[
        bool,
        _output_flag(
            "--dry-run",
            help="Print what would be made (names, seeds, sizes, prompt lengths, and how long it "
            "takes where that is known) and stop.",
        ),
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineOptions:
    """How it is computed, and by how many."""

    device: Annotated[str, _setting("device")] = _DEFAULT.device
    dtype: Annotated[str, _setting("dtype")] = _DEFAULT.dtype
    batch_size: Annotated[
        str,
        _machine(
            "--batch-size",
            metavar="auto|N",
            help="Images per batch. It changes the speed, and on a GPU it may change single bits.",
        ),
    ] = "auto"
    workers: Annotated[
        str | None,
        _machine(
            "--workers",
            metavar="N|auto",
            help="Processes that draw, each on a GPU of its own, or sharing the CPU; auto is one "
            "for each GPU.",
        ),
    ] = None
    ray: Annotated[
        str | None,
        _machine(
            "--ray",
            metavar="ADDRESS",
            help="Draw on a Ray cluster that is running already, as in auto or head:6379. Needs "
            "the extra: pip install 'klein-cli\\[ray]'.",
        ),
    ] = None
    server: Annotated[
        str,
        _machine(
            "--server",
            metavar="auto|off|require|start|URL",
            help="An engine of klein serve draws, if one is running that draws the same bits; "
            "start starts one that ends when it is idle.",
        ),
    ] = "auto"
    engine: Annotated[str, _setting("engine")] = _DEFAULT.engine
    attention: Annotated[str, _setting("attention")] = _DEFAULT.attention
    rng: Annotated[str, _setting("rng")] = _DEFAULT.rng
    quantize: Annotated[str, _setting("quantize")] = _DEFAULT.quantize
    kernels: Annotated[str, _setting("kernels")] = _DEFAULT.kernels

    def settings(self) -> Settings:
        """How to compute, still with its "auto"s. Raises UsageError for an invalid choice."""
        return Settings(**{name: getattr(self, name) for name in CHOICES})

    def placement(self) -> Placement:
        """Who draws. Raises UsageError."""
        return Placement.parse(self.workers, self.ray, self.server)

    def images_per_batch(self) -> int | None:
        """--batch-size, None for the executor's own choice. Raises UsageError."""
        if self.batch_size == "auto":
            return None
        if not re.fullmatch(r"0*[1-9]\d{0,5}", self.batch_size, re.ASCII):
            raise UsageError(
                f"--batch-size {self.batch_size} is not valid",
                "use a number from 1 to 999999, or auto",
            )
        return int(self.batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartOptions:
    """Files in place of the model's own parts."""

    transformer: Annotated[
        str | None,
        _machine(
            "--transformer",
            metavar="FILE",
            help="A transformer in one file, in place of the model's: safetensors as BFL or "
            "ComfyUI have them (bfloat16, fp8, nvfp4, int8), or GGUF.",
        ),
    ] = None
    text_encoder: Annotated[
        str | None,
        _machine(
            "--text-encoder",
            metavar="FILE|DIR",
            help="A Qwen3 in one file, or a folder, in place of the model's text encoder.",
        ),
    ] = None
    vae: Annotated[
        str | None,
        _machine(
            "--vae",
            metavar="FILE|DIR|small",
            help="A VAE in one file, or a folder; small is a decoder that is quicker and a little "
            "less exact.",
        ),
    ] = None
    models_dir: Annotated[
        str | None,
        _machine(
            "--models-dir",
            metavar="DIR",
            help="A folder as ComfyUI has it, in which files are looked for by name; its "
            "extra_model_paths.yaml is read.",
        ),
    ] = None

    def wanted(self, model: str | None) -> Wanted:
        """The model, None for one that is named elsewhere, and its parts.

        Raises UsageError or ModelError for files that are none.
        """
        from klein_cli.checkpoints.given import wanted

        parts = {name: getattr(self, name) for name in ("transformer", "text_encoder", "vae")}
        return wanted(model, parts, self.models_dir)

    def adapters_dir(self) -> ModelsDir | None:
        """Where adapters are looked for by name. Raises UsageError when it is no folder."""
        from klein_cli.checkpoints.models_dir import ModelsDir

        return None if self.models_dir is None else ModelsDir(user_path(self.models_dir))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What is reported of a run, and how."""

    json: Json = False
    quiet: Quiet = False
    verbose: Verbose = False
