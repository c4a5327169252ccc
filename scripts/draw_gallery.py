"""Draw docs/images/gallery.png: the page that --gallery makes, of pictures of `tiny`, in Chromium.

python scripts/draw_gallery.py [FOLDER]      needs chromium and chromedriver, and two minutes

The pictures are drawn into FOLDER (a temporary one if left out), where the page stays.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import product
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "fixtures"))

from browser import browsing  # noqa: E402

from klein_cli.cli.app import main as klein  # noqa: E402

IMAGE = ROOT / "docs" / "images" / "gallery.png"
COLOURS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "star", "triangle")
GROUNDS = ("white", "black")
COLOURS_SHOWN = 256


def draw(folder: Path) -> None:
    """Forty pictures and their page."""
    prompts = folder / "prompts.txt"
    words = product(GROUNDS, SHAPES, COLOURS)
    prompts.write_text(
        "\n".join(f"a {colour} {shape} on a {ground} background" for ground, shape, colour in words)
    )
    run = ["--prompts-file", str(prompts), "-m", "tiny", "-s", "1", "-o", f"{folder}/pictures/"]
    if code := klein(["generate", *run, "--gallery", "-q"]):
        raise SystemExit(code)


def photograph(page: Path) -> Image.Image:
    """The page with a word in its filter."""
    with browsing() as browser:
        browser.open(page.as_uri())
        browser.press("/", *"circle")
        browser.run("document.activeElement.blur()")
        with Image.open(browser.picture()) as image:
            return image.convert("RGB")


def main() -> None:
    """Draw, photograph, and save the image small."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    draw(folder)
    image = photograph(folder / "pictures" / "index.html")
    image.quantize(COLOURS_SHOWN).save(IMAGE, optimize=True)
    print(f"{IMAGE}: {IMAGE.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
