"""The fields of OpenAI's Images API -> what to draw.

Every field is used, refused by name, or ignored with a sentence in the answer's `warnings`: none
is dropped without a word.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from klein_cli.errors import UsageError
from klein_cli.output.png import QUALITY
from klein_cli.presets import Preset
from klein_cli.prompts.rows import Defaults, Inputs, Row, ignored, prompt_fault, recipe_of
from klein_cli.prompts.sizes import parse_size
from klein_cli.recipe import CPU_SEEDS, MAX_SEED, Adapter, Recipe
from klein_cli.serve.errors import ApiError

_MAX_PROMPT = 32_000
_MAX_IMAGES = 10
_MAX_PARTIAL = 3
_ANY_MODEL = re.compile(r"(gpt-image-|dall-e-|chatgpt-image-).*")
"""What clients send that know OpenAI's models alone."""

_NO_IMAGES = Inputs()

FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_QUALITIES = ("auto", "low", "medium", "high", "xhigh", "max", "standard", "hd")
_BACKGROUNDS = ("auto", "opaque")
_ALIASES = {
    "steps": ("steps", "num_inference_steps"),
    "guidance": ("guidance", "guidance_scale", "cfg_scale"),
}
_WITHOUT_EFFECT = {
    "quality": "klein draws in one quality",
    "style": "klein has one style: say it in the prompt",
    "moderation": "klein does not moderate",
    "input_fidelity": "klein sees images in one fidelity",
    "complexity": "klein has no such choice",
    "user": "it is not kept",
    "safety_identifier": "it is not kept",
}
_REFUSED = {
    "frame_count": "klein draws still images",
    "frame_duration_ms": "klein draws still images",
    "svg": "klein draws pixels",
    "markup": "give a mask, or another image",
}
_USED = {
    *("prompt", "model", "n", "size", "width", "height", "response_format", "output_format"),
    *("output_compression", "background", "stream", "partial_images", "seed"),
    *("lora", "negative_prompt", "progress", "strict", "timeout", "priority"),
    *(name for names in _ALIASES.values() for name in names),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request for images, checked. `progress` asks for klein's own events in a stream, too;
    `timeout` is in seconds, None for the server's own; `quality_of_file` is JPEG's and WebP's.
    """

    recipes: list[Recipe]
    extension: str
    quality_of_file: int
    as_url: bool
    stream: bool
    partial_images: int
    progress: bool
    strict: bool
    bulk: bool
    timeout: float | None
    quality: str
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What requests may ask for: the model that is there, by which `names`, and by theirs the
    `adapters`.
    """

    preset: Preset
    names: Collection[str]
    adapters: Mapping[str, Adapter] = field(default_factory=dict)


def parse(
    body: Mapping[str, Any],
    served: Served,
    *,
    own: Collection[str] = (),
    inputs: Inputs = _NO_IMAGES,
) -> Asked:
    """A request's fields. `own` are those that the caller has seen to, `inputs` the images that it
    found in them. Raises ApiError.
    """
    for name, why in _REFUSED.items():
        if body.get(name) is not None:
            raise ApiError(400, f"{name} is not available: {why}", param=name)
    _check_model(body.get("model"), served)
    warnings = list(_said_in_vain(body, own))
    inputs = replace(inputs, adapters=_adapters(body, served.adapters))
    recipes = _recipes(body, served.preset, inputs, warnings)
    kind = _one_of(body, "output_format", tuple(FORMATS), "png")
    _one_of(body, "background", _BACKGROUNDS, "auto")
    compression = _number(body, "output_compression", int, 0, 100)
    if compression is not None and kind == "png":
        warnings.append("output_compression has no effect: PNG is lossless")
    stream = _flag(body, "stream")
    partial_images = _number(body, "partial_images", int, 0, _MAX_PARTIAL) or 0
    progress = _flag(body, "progress")
    if not stream:
        watched = {"partial_images": partial_images, "progress": progress}
        warnings += [f"{name} has no effect without stream" for name in watched if watched[name]]
    timeout = _number(body, "timeout", float, 0, 86_400)
    return Asked(
        recipes=recipes,
        extension=FORMATS[kind],
        quality_of_file=QUALITY if compression is None else compression,
        as_url=_one_of(body, "response_format", ("b64_json", "url"), "b64_json") == "url",
        stream=stream,
        partial_images=partial_images,
        progress=progress,
        strict=_flag(body, "strict"),
        bulk=_one_of(body, "priority", ("single", "bulk"), "single") == "bulk",
        timeout=timeout,
        quality=_one_of(body, "quality", _QUALITIES, "auto"),
        warnings=warnings,
    )


def _check_model(name: Any, served: Served) -> None:
    if name is None or name in served.names:
        return
    if not isinstance(name, str):
        raise ApiError(400, "model is not text", param="model")
    if not _ANY_MODEL.fullmatch(name):
        known = ", ".join(sorted(served.names))
        raise ApiError(
            404,
            f"there is no model {name[:100]!r} here: there is {known}",
            param="model",
            code="model_not_found",
        )


def _adapters(body: Mapping[str, Any], known: Mapping[str, Adapter]) -> tuple[Adapter, ...]:
    """Of "lora": a list of names, each perhaps with "=WEIGHT"."""
    given = body.get("lora") or []
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise ApiError(400, "lora is not a list of names", param="lora")
    return tuple(_adapter(each, known) for each in given)


def _adapter(given: str, known: Mapping[str, Adapter]) -> Adapter:
    name, has_weight, weight = given.partition("=")
    if name not in known:
        there = ", ".join(sorted(known)) or "none"
        raise ApiError(400, f"there is no adapter {name[:100]!r} here: {there}", param="lora")
    if not has_weight:
        return known[name]
    try:
        return replace(known[name], weight=float(weight))
    except (ValueError, UsageError):
        what = f"{given[:100]!r} has no weight from -100 to 100"
        raise ApiError(400, what, param="lora") from None


def _said_in_vain(body: Mapping[str, Any], own: Collection[str]) -> list[str]:
    said = []
    for name, value in body.items():
        if value is None or name in _USED or name in own:
            continue
        why = _WITHOUT_EFFECT.get(name, "klein does not know it")
        if (name, value) not in (("quality", "auto"), ("moderation", "auto")):
            said.append(f"{name[:100]} is ignored: {why}")
    return said


def _recipes(
    body: Mapping[str, Any], preset: Preset, inputs: Inputs, warnings: list[str]
) -> list[Recipe]:
    prompt = _text(body, "prompt", _MAX_PROMPT)
    if prompt is None:
        raise ApiError(400, "there is no prompt: say what to draw", param="prompt")
    fault = prompt_fault(prompt)
    if fault is not None:
        raise ApiError(400, ": ".join(fault), param="prompt")
    width, height = _size(body)
    if inputs.mask is not None and (width, height) != (None, None):
        warnings.append("the size has no effect: with a mask it is the image's own")
        width = height = None
    row = Row(
        prompt=prompt,
        width=width,
        height=height,
        steps=_number(body, _named(body, "steps"), int, 1, 1000),
        guidance=_number(body, _named(body, "guidance"), float, 0, 100),
        negative_prompt=_text(body, "negative_prompt", _MAX_PROMPT) or None,
    )
    without = f"has no effect: {preset.name} is distilled"
    warnings.extend(f"{name} {without}" for name in ignored(row, preset))
    seed = _seed(body)
    count = _number(body, "n", int, 1, _MAX_IMAGES) or 1
    defaults = Defaults(preset=preset)
    return [_recipe(row, defaults, seed + number, inputs) for number in range(count)]


def _recipe(row: Row, defaults: Defaults, seed: int, inputs: Inputs) -> Recipe:
    try:
        return recipe_of(row, defaults, seed, inputs)
    except UsageError as error:
        words = ("width", "height", "steps", "guidance", "seed", "prompt")
        param = next((word for word in words if error.message.startswith(word)), None)
        param = "size" if param in ("width", "height") else param
        raise ApiError(400, f"{error.message}: {error.hint}", param=param) from None


def _size(body: Mapping[str, Any]) -> tuple[int | None, int | None]:
    size = _text(body, "size", 20)
    sides = tuple(_number(body, name, int, 1, 100_000) for name in ("width", "height"))
    if size in (None, "auto"):
        return sides[0], sides[1]
    if sides != (None, None):
        raise ApiError(400, "the size is given twice: leave out size, or width and height")
    try:
        return parse_size(size or "")
    except UsageError as error:
        message = error.message.replace("--size", "size")
        raise ApiError(400, f"{message}: {error.hint}", param="size") from None


def _seed(body: Mapping[str, Any]) -> int:
    seed = _number(body, "seed", int, -1, MAX_SEED)
    return secrets.randbelow(CPU_SEEDS) if seed in (None, -1) else int(seed or 0)


def _named(body: Mapping[str, Any], name: str) -> str:
    """The alias by which a value is given."""
    given = [alias for alias in _ALIASES[name] if body.get(alias) is not None]
    if len(given) > 1:
        raise ApiError(400, f"{given[0]} and {given[1]} are one thing", param=given[1])
    return given[0] if given else name


def _text(body: Mapping[str, Any], name: str, most: int) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ApiError(400, f"{name} is not text", param=name)
    if len(value) > most:
        raise ApiError(400, f"{name} has more than {most:,} characters", param=name)
    return value


def _one_of(body: Mapping[str, Any], name: str, words: tuple[str, ...], default: str) -> str:
    value = body.get(name)
    if value is None or value == "":
        return default
    if value not in words:
        known = ", ".join(words)
        raise ApiError(400, f"{name} {str(value)[:40]!r} is not available: use {known}", param=name)
    return str(value)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    known = {None: False, "": False, "true": True, "false": False, "1": True, "0": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str | None) and value in known:
        return known[value]
    raise ApiError(400, f"{name} is not true or false", param=name)


def _number(
    body: Mapping[str, Any], name: str, kind: Callable[[Any], Any], least: float, most: float
) -> Any:
    """A number of JSON, or as a form has it; None where there is none."""
    value = body.get(name)
    if value is None or value == "":
        return None
    what = "a whole number" if kind is int else "a number"
    wrong = ApiError(400, f"{name} is not {what} from {least:g} to {most:g}", param=name)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or len(str(value)) > 40:
        raise wrong
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        raise wrong from None
    if (isinstance(value, float) and number != value) or not least <= number <= most:
        raise wrong
    return number
