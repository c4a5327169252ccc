"""Comparisons -> one HTML file that needs nothing else: images side by side, and the numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from klein_cli.check.metrics import Pixels
from klein_cli.check.verify import Comparison, Measure

AMPLIFIED = 32
"""How many times the difference of two images is shown: one level becomes visible."""

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
figure { display: inline-block; margin: 0 .6rem .6rem 0 } figcaption { color: #777 }
img { width: 16rem; display: block; image-rendering: pixelated; background: #000 }
table { border-collapse: collapse; margin: .4rem 0 1rem } td, th { padding: .1rem .9rem .1rem 0 }
td { font-variant-numeric: tabular-nums } th { text-align: left; font-weight: 600 }
.bad { color: #c00; font-weight: 600 } pre { white-space: pre-wrap; margin: .3rem 0 }
"""


def page(facts: Mapping[str, str], comparisons: Sequence[Comparison]) -> str:
    """The report. `facts` head it: what was compared, where, in which versions."""
    passed = all(comparison.passed for comparison in comparisons)
    word = "the same" if passed else "NOT the same"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>klein verify: {word}</title><style>{_STYLE}</style>",
        f"<h1 class={'good' if passed else 'bad'}>klein and diffusers: {word}</h1>",
        _table([(escape(name), escape(value)) for name, value in facts.items()]),
        *(_section(comparison) for comparison in comparisons),
    ]
    return "\n".join(parts) + "\n"


def difference(found: Pixels, wanted: Pixels) -> Pixels:
    """The absolute difference of two images, AMPLIFIED and clipped."""
    apart = np.abs(found.astype(np.int64) - wanted) * AMPLIFIED
    shown: Pixels = apart.clip(0, 255).astype(np.uint8)
    return shown


def _section(comparison: Comparison) -> str:
    recipe, ours, theirs = comparison.recipe, comparison.ours, comparison.theirs
    images = {
        "klein": ours,
        "diffusers": theirs,
        f"difference x {AMPLIFIED}": difference(ours, theirs),
    }
    return (
        f"<h2>{comparison.length} of 512 positions, seed {recipe.seed}</h2>"
        f"<pre>{escape(recipe.prompt) or '(empty)'}</pre>"
        + "".join(_figure(caption, image) for caption, image in images.items())
        + _table(_rows(comparison.measures))
    )


def _figure(caption: str, image: Pixels) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f"<figure><img alt='{caption}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _rows(measures: Sequence[Measure]) -> Iterator[tuple[str, ...]]:
    for measure in measures:
        value, limit = measure.words()
        verdict = "" if measure.passed else "<span class=bad>too far</span>"
        yield measure.part, measure.name, value, escape(limit), verdict


def _table(rows: Sequence[tuple[str, ...]] | Iterator[tuple[str, ...]]) -> str:
    lines = (
        f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return f"<table>{''.join(lines)}</table>"
