"""Draw the figures of docs/numerics.md: the mask, and what wrong masks do to pictures of `tiny`.

python scripts/draw_figures.py [FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "fixtures"))

from injected import in_place  # noqa: E402
from wrong_encoders import WRONG  # noqa: E402

from klein_cli.check.metrics import Pixels  # noqa: E402
from klein_cli.checkpoints.resolve import resolve  # noqa: E402
from klein_cli.models.attention import AttentionLengths  # noqa: E402
from klein_cli.pipeline import Pipeline, choose  # noqa: E402
from klein_cli.recipe import Recipe  # noqa: E402
from klein_cli.settings import Settings  # noqa: E402

CELL, POSITIONS, LENGTH = 14, 12, 7
SHOWN = ("mask ignored", "first pad unmasked", "zeroed pads", "causal from the bottom right")
COLOURS = {"seen": "#2f6fb2", "wrong": "#d1495b", "missing": "#f2c6cc", "blocked": "#eef0f3"}

PROMPTS = (
    "a red circle on a white background",
    "a large yellow star on a blue background",
    "a small green square above a large purple circle on a white background",
)
COLUMNS = ("right", "first pad unmasked", "mask ignored", "zeroed pads", "zeros after the prompt")
SIDE, GAP, LINE = 160, 8, 22


def mask_figure() -> str:
    """SVG: the mask of a prompt of 7 tokens in 12 positions, and four wrong ones beside it."""
    right = AttentionLengths.of((LENGTH,), POSITIONS, torch.device("cpu")).mask[0, 0]
    panels = [("right", right, right)]
    panels += [(name, _wrong_mask(name), right) for name in SHOWN]
    step = CELL * POSITIONS + 46
    width, height = step * len(panels) + 10, CELL * POSITIONS + 84
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for number, (title, found, wanted) in enumerate(panels):
        lines.append(f'<g transform="translate({number * step + 34}, 30)">')
        lines += _panel(title, found, wanted, labelled=number == 0)
        lines.append("</g>")
    lines += [*_legend(height - 12), "</svg>"]
    return "\n".join(lines) + "\n"


def _wrong_mask(name: str) -> torch.Tensor:
    place = torch.arange(POSITIONS)
    rule = WRONG[name].attend.rule  # type: ignore[attr-defined]
    found: torch.Tensor = rule(place[:, None], place[None], torch.tensor([[[LENGTH]]]), POSITIONS)[
        0
    ]
    return found.expand(POSITIONS, POSITIONS)


def _panel(
    title: str, found: torch.Tensor, wanted: torch.Tensor, *, labelled: bool
) -> Iterator[str]:
    side = CELL * POSITIONS
    yield f'<text x="0" y="-12" font-weight="600">{escape(title)}</text>'
    for i in range(POSITIONS):
        for j in range(POSITIONS):
            kinds = {(True, True): "seen", (True, False): "wrong", (False, True): "missing"}
            kind = kinds.get((bool(found[i, j]), bool(wanted[i, j])), "blocked")
            yield (
                f'<rect x="{j * CELL}" y="{i * CELL}" width="{CELL - 1}" height="{CELL - 1}" '
                f'fill="{COLOURS[kind]}"/>'
            )
    at = LENGTH * CELL - 0.5
    yield f'<path d="M{at} -4V{side + 4}M-4 {at}H{side + 4}" stroke="#333" stroke-dasharray="3 2"/>'
    if labelled:
        yield f'<text x="0" y="{side + 17}">keys: prompt | pads</text>'
        yield f'<text transform="translate(-10,{side}) rotate(-90)">queries: pads | prompt</text>'


def _legend(y: int) -> Iterator[str]:
    words = {
        "seen": "may attend",
        "wrong": "attends, and should not",
        "missing": "should attend, and does not",
        "blocked": "may not",
    }
    x = 34
    for kind, text in words.items():
        yield f'<rect x="{x}" y="{y - 11}" width="12" height="12" fill="{COLOURS[kind]}"/>'
        yield f'<text x="{x + 18}" y="{y}">{text}</text>'
        x += 40 + 7 * len(text)


def draw(encoder: str) -> list[Pixels]:
    """Pictures of PROMPTS by `tiny` with this encoder in the place of the right one."""
    with in_place(None if encoder == "right" else encoder):
        settings = choose(Settings(device="cpu", dtype="float32", attention="sdpa"))
        pipeline = Pipeline.load(resolve("tiny"), settings)
    recipes = [
        Recipe(prompt=p, seed=s, width=256, height=256, steps=4, guidance=1.0, model="tiny")
        for s, p in enumerate(PROMPTS, start=1)
    ]
    return [pipeline.render([recipe])[0] for recipe in recipes]


def pictures_figure(columns: Sequence[tuple[str, list[Pixels]]]) -> Image.Image:
    """The pictures under their encoder's name, one prompt a row."""
    width = len(columns) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, LINE + len(PROMPTS) * (SIDE + LINE + GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (name, pictures) in enumerate(columns):
        x = GAP + number * (SIDE + GAP)
        pen.text((x, 4), name, fill="black", font=font)
        for row, picture in enumerate(pictures):
            y = LINE + row * (SIDE + LINE + GAP)
            sheet.paste(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX), (x, y))
    for row, prompt in enumerate(PROMPTS):
        y = LINE + row * (SIDE + LINE + GAP) + SIDE + 3
        pen.text((GAP, y), prompt, fill="#555555", font=font)
    return sheet


def main() -> None:
    """Read the command line and write both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "docs" / "images")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mask.svg").write_text(mask_figure(), encoding="utf-8")
    sheet = pictures_figure([(encoder, draw(encoder)) for encoder in COLUMNS])
    sheet.save(folder / "wrong-mask.png", optimize=True)
    print(f"{folder / 'mask.svg'}, {folder / 'wrong-mask.png'}")


if __name__ == "__main__":
    main()
