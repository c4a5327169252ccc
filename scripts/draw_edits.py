"""Draw docs/images/edits.png: an image of `tiny` and edits of it, by the README's own commands.

python scripts/draw_edits.py [README]

The commands are those that name before.png. The strip keeps their prompts, and the fingerprint of
the weights that drew it.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from klein_cli.cli.app import main as klein
from klein_cli.output.reading import read_record

ROOT = Path(__file__).parents[1]
STRIP = ROOT / "docs" / "images" / "edits.png"
SOURCE = "before.png"
SIDE, GAP, LINE, LETTERS = 160, 10, 18, 21
COLOURS_SHOWN = 128


def commands(readme: str) -> list[list[str]]:
    """The arguments of the command lines that make the source and its edits, in their order."""
    lines = (line for line in readme.splitlines() if line.startswith("klein ") and SOURCE in line)
    return [shlex.split(line, comments=True)[1:] for line in lines]


def prompt_of(arguments: list[str]) -> str:
    """What a command asks for."""
    return arguments[1 if arguments[0] == "generate" else 2]


def draw(arguments: list[str]) -> Image.Image:
    """The image that a command makes here."""
    if code := klein([*arguments, "-y", "-q"]):
        raise SystemExit(code)
    with Image.open(arguments[arguments.index("-o") + 1]) as image:
        return image.convert("RGB")


def strip(images: list[Image.Image], prompts: list[str]) -> Image.Image:
    """The images side by side, each over its prompt."""
    captions = [textwrap.fill(prompt, LETTERS) for prompt in prompts]
    most = max(caption.count("\n") + 1 for caption in captions)
    width = len(images) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, SIDE + 2 * GAP + most * LINE + GAP), "#eef0f3")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x = GAP + number * (SIDE + GAP)
        sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, GAP))
        middle = (x + SIDE // 2, SIDE + 2 * GAP)
        pen.text(middle, caption, fill="#333333", font=font, anchor="ma", align="center")
    return sheet


def main() -> None:
    """Run the commands in a folder of their own, and save the strip small."""
    readme = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "README.md").absolute()
    found = commands(readme.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        images = [draw(arguments) for arguments in found]
        said = PngImagePlugin.PngInfo()
        said.add_text("weights", str(read_record(Path(SOURCE)).weights))
        os.chdir(ROOT)
    prompts = [prompt_of(arguments) for arguments in found]
    said.add_text("prompts", json.dumps(prompts))
    sheet = strip(images, prompts).quantize(COLOURS_SHOWN)
    sheet.save(STRIP, pnginfo=said, optimize=True)
    print(f"{STRIP}: {STRIP.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
