"""Which pipelines and batches compare_checkouts.py has drawn by both checkouts.

Sizes are as small as show what they should: on two cores, the whole of the CPU's takes minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from typing import Any

Work = list[dict[str, Any]]

MODELS = ("tiny", "distilled", "base")
SHORT = "a red circle on a white background"
LONG = "a lighthouse on a cliff in a storm, waves breaking, dramatic clouds, wide angle; " * 40
"""More tokens than the 512 that a model reads, by every tokenizer here."""
MIXED = ("two cats asleep on a windowsill, soft morning light", LONG, "")
NEGATIVES = ("blurred, dark", None, LONG)
GUIDANCE = 3.5


def library_work(device: str, models: dict[str, str], full_size: bool) -> dict[str, Work]:
    """Pipelines and their batches, by the process that draws them: "torch", "triton", "full size".

    `models` are the folders of "distilled" and "base", and of "full" and "full base" if there is a
    `full_size`. On a CPU, "triton" is drawn in Triton's interpreter, behind one layer of
    the text encoder: 27 would take it minutes.
    """
    models = {"tiny": "tiny", **models}
    if device == "cpu":
        return {
            "torch": [_pipeline(models, s, _batches(s)) for s in _on_cpu()],
            "triton": [
                _pipeline(models, s, _few(s)) | {"tapped_layers": (1, 1, 1)} for s in _interpreted()
            ],
        }
    work = {"gpu": [_pipeline(models, s, _batches(s)) for s in _on_gpu()]}
    if full_size:
        work["full size"] = [_pipeline(models, s, _true_sizes(s)) for s in _full_size()]
    return work


def _settings(model: str, **changes: str) -> dict[str, str]:
    plain = {"engine": "native", "attention": "sdpa", "dtype": "float32", "kernels": "torch"}
    return {"model": model, "device": "cpu", **plain, "quantize": "none", "rng": "cpu", **changes}


def _on_cpu() -> Iterator[dict[str, str]]:
    for model, engine, attention, dtype in product(
        MODELS, ("native", "diffusers"), ("sdpa", "eager"), ("float32", "bfloat16")
    ):
        yield _settings(model, engine=engine, attention=attention, dtype=dtype)
    for model in MODELS:
        yield _settings(model, dtype="bfloat16", quantize="fp8")


def _interpreted() -> Iterator[dict[str, str]]:
    for dtype, quantize in (("float32", "none"), ("bfloat16", "none"), ("bfloat16", "fp8")):
        yield _settings("distilled", dtype=dtype, kernels="triton", quantize=quantize)


def _on_gpu() -> Iterator[dict[str, str]]:
    attentions = ["eager", *(["flash-attn"] if find_spec("flash_attn") else [])]
    fast = {"device": "cuda", "dtype": "bfloat16", "kernels": "triton"}
    for model in MODELS:
        for kernels, quantize in product(("triton", "torch"), ("none", "fp8")):
            yield _settings(model, **fast | {"kernels": kernels, "quantize": quantize})
        for kernels in ("triton", "torch"):
            yield _settings(model, **fast | {"dtype": "float32", "kernels": kernels})
        for attention in attentions:
            yield _settings(model, **fast | {"attention": attention})
        for dtype in ("bfloat16", "float32"):
            yield _settings(model, device="cuda", engine="diffusers", dtype=dtype)
        yield _settings(model, **fast | {"rng": "cuda"})


def _full_size() -> Iterator[dict[str, str]]:
    fast = {"device": "cuda", "dtype": "bfloat16", "kernels": "triton"}
    for kernels, quantize in product(("triton", "torch"), ("none", "fp8")):
        yield _settings("full", **fast | {"kernels": kernels, "quantize": quantize})
    for quantize in ("none", "fp8"):
        yield _settings("full base", **fast | {"quantize": quantize})


def _pipeline(
    models: dict[str, str], settings: dict[str, str], batches: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The pipeline as the probe reads it; every batch named by all that it is drawn with."""
    words = [settings[key] for key in ("model", "engine", "attention", "dtype", "kernels")]
    words += [settings[key] for key in ("quantize", "rng") if settings[key] not in ("none", "cpu")]
    title = "library " + " ".join(words)
    return {
        "model": models[settings["model"]],
        "tapped_layers": None,
        "settings": {key: value for key, value in settings.items() if key != "model"},
        "batches": [{"name": f"{title}: {name}", **batch} for name, batch in batches.items()],
    }


def _batches(settings: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Of one and of three, again in another order, of odd sizes; tiled and large ones where the
    text encoder's attention makes no difference to them.
    """
    model = settings["model"]
    odd = (144, 176) if model == "tiny" else (80, 112)
    batches = {
        "one": _batch(model, [SHORT], odd[::-1], steps=4),
        "one overlong": _batch(model, [LONG], odd),
        "three": _batch(model, MIXED, odd),
        "three again": _batch(model, MIXED[::-1], odd),
    }
    if settings["attention"] == "sdpa" and settings["quantize"] == "none":
        batches["tiled"] = _batch(model, [SHORT], (560, 528), steps=1, tiled=True)
        if model == "distilled":
            batches["over 4300 tokens"] = _batch(model, [SHORT], (1072, 1056))
    return batches


def _few(settings: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What the interpreter, which takes milliseconds a row, draws in a minute.

    A CPU has no product of half precision into float32, and so no such VAE: `no_pixels`.
    """
    batches = {"one": _batch(settings["model"], [SHORT], (48, 32), steps=1)}
    batches["one"]["no_pixels"] = settings["dtype"] == "bfloat16"
    return batches


def _true_sizes(settings: dict[str, str]) -> dict[str, dict[str, Any]]:
    model, square = settings["model"], (1024, 1024)
    return {
        "one": _batch(model, [SHORT], square, steps=4),
        "one again": _batch(model, [LONG], square, steps=4),
        "two": _batch(model, MIXED[:2], square, steps=4),
        "odd": _batch(model, [SHORT], (1040, 784), steps=4),
        "over 4300 tokens": _batch(model, [SHORT], (1360, 1040), steps=4),
        "tiled": _batch(model, [SHORT], square, steps=1, tiled=True),
    }


def _batch(
    model: str, prompts: Any, size: tuple[int, int], *, steps: int = 2, tiled: bool = False
) -> dict[str, Any]:
    guided = "base" in model
    rows = [
        {
            "prompt": prompt,
            "seed": 7 + number,
            "width": size[0],
            "height": size[1],
            "steps": steps,
            "guidance": GUIDANCE if guided else 1.0,
            "negative_prompt": NEGATIVES[number % len(NEGATIVES)] if guided else None,
            "model": model,
        }
        for number, prompt in enumerate(prompts)
    ]
    return {"rows": rows, "tiled": tiled, "no_pixels": False}
