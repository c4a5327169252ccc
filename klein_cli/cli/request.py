"""The command line as one value, checked and turned into what a run is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from klein_cli.errors import UsageError
from klein_cli.presets import Preset
from klein_cli.prompts.files import STDIN, BadRow, name_of, read_prompt, read_rows
from klein_cli.prompts.rows import MAX_PICTURES, Defaults, Row, prompt_fault
from klein_cli.prompts.seeds import parse_seeds
from klein_cli.prompts.sizes import picture_size
from klein_cli.recipe import check_guidance
from klein_cli.settings import (
    ATTENTIONS,
    DEVICES,
    DTYPES,
    ENGINES,
    KERNELS,
    QUANTIZATIONS,
    RNGS,
    Settings,
    is_device,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of `klein generate` as they were given; None means not given."""

    prompt: str | None = None
    prompt_option: str | None = None
    prompts_file: str | None = None
    negative_prompt: str | None = None
    wildcards: bool = False
    strict: bool = False
    num_images: int = 1
    seed: int | None = None
    seeds: str | None = None
    width: int | None = None
    height: int | None = None
    size: str | None = None
    aspect: str | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_scale: float | None = None
    output: str | None = None
    overwrite: bool = False
    gallery: bool = False
    no_metadata: bool = False
    resume: bool = False
    dry_run: bool = False
    model: str
    device: str = "auto"
    dtype: str = "auto"
    batch_size: str = "auto"
    workers: str | None = None
    ray: str | None = None
    engine: str = "native"
    attention: str = "auto"
    rng: str = "cpu"
    quantize: str = "none"
    kernels: str = "auto"
    show: bool = False
    json: bool = False
    quiet: bool = False
    verbose: bool = False


def settings_of(request: Request) -> Settings:
    """How to compute, still with its "auto"s. Raises UsageError for a word that is no choice."""
    if not is_device(request.device):
        _check_choice("--device", request.device, DEVICES, "cuda:N")
    _check_choice("--dtype", request.dtype, DTYPES)
    _check_choice("--engine", request.engine, ENGINES)
    _check_choice("--attention", request.attention, ATTENTIONS)
    _check_choice("--rng", request.rng, RNGS)
    _check_choice("--quantize", request.quantize, QUANTIZATIONS)
    _check_choice("--kernels", request.kernels, KERNELS)
    return Settings(
        device=request.device,
        dtype=request.dtype,
        attention=request.attention,
        engine=request.engine,
        rng=request.rng,
        quantize=request.quantize,
        kernels=request.kernels,
    )


def batch_size_of(request: Request) -> int | None:
    """Pictures in a batch, or None for the pipeline's own choice. Raises UsageError."""
    if request.batch_size == "auto":
        return None
    if not re.fullmatch(r"0*[1-9]\d{0,5}", request.batch_size, re.ASCII):
        raise UsageError(
            f"--batch-size {request.batch_size} cannot be", "use a number from 1 to 999999, or auto"
        )
    return int(request.batch_size)


def prompts_of(request: Request, stdin: BinaryIO) -> tuple[str, Iterator[Row | BadRow]]:
    """The prompts file's name ("" for a typed prompt) and its rows. Raises UsageError."""
    given = [
        text
        for text in (request.prompt, request.prompt_option, request.prompts_file)
        if text is not None
    ]
    if not given:
        raise UsageError("there is no prompt", 'say what to draw: klein generate "a red circle"')
    if len(given) > 1:
        raise UsageError(
            "the prompt is given in more than one way", "use PROMPT, or --prompt, or --prompts-file"
        )
    if request.prompts_file is not None:
        return request.prompts_file, read_rows(request.prompts_file, stdin)
    return "", iter([_typed(given[0], stdin)])


def defaults_of(request: Request, preset: Preset) -> Defaults:
    """What a row gets where it is silent. Raises UsageError."""
    width, height = picture_size(
        preset,
        width=request.width,
        height=request.height,
        size=request.size,
        aspect=request.aspect,
    )
    guided = guidance_of(request)
    if guided is not None:
        check_guidance(guided)
    if preset.distilled:
        guided = None
    if not 1 <= request.num_images <= MAX_PICTURES:
        raise UsageError(
            f"--num-images {request.num_images} is out of range", f"use 1 to {MAX_PICTURES}"
        )
    sweep = parse_seeds(request.seeds) if request.seeds is not None else ()
    if sweep and (request.seed is not None or request.num_images != 1):
        raise UsageError("--seeds goes with neither --seed nor --num-images", "use one of them")
    return Defaults(
        model=preset.name,
        width=width,
        height=height,
        steps=preset.steps if request.steps is None else request.steps,
        guidance=preset.guidance if guided is None else guided,
        negative_prompt=None if preset.distilled else request.negative_prompt,
        n=request.num_images,
        seeds=sweep,
        wildcards=request.wildcards,
    )


def without_effect(request: Request, preset: Preset) -> Iterator[str]:
    """The options that were given and that a distilled model ignores."""
    if preset.distilled and guidance_of(request) is not None:
        yield "--guidance"
    if preset.distilled and request.negative_prompt is not None:
        yield "--negative-prompt"


def guidance_of(request: Request) -> float | None:
    """The guidance that was asked for, by whichever of its names."""
    return request.guidance_scale if request.guidance is None else request.guidance


def _typed(prompt: str, stdin: BinaryIO) -> Row:
    if prompt == STDIN:
        prompt = read_prompt(stdin)
        if not prompt.strip():
            raise UsageError(f"{name_of(STDIN)} holds no prompt", "pipe the prompt's text in")
    fault = prompt_fault(prompt)
    if fault:
        raise UsageError(*fault)
    return Row(prompt=prompt)


def _check_choice(option: str, word: str, choices: tuple[str, ...], *patterns: str) -> None:
    if word not in choices:
        known = ", ".join((*choices, *patterns))
        raise UsageError(f"{option} {word} is no choice", f"use {known}")
