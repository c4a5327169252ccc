"""Draw klein_cli/check/golden.png, what `klein doctor` compares with: after tiny's weights changed.

python scripts/make_golden.py
"""

from __future__ import annotations

from PIL import Image, PngImagePlugin

from klein_cli.check.golden import FILE, RECIPE, WEIGHTS_KEY, weights_digest
from klein_cli.checkpoints.resolve import resolve
from klein_cli.pipeline import Pipeline, choose
from klein_cli.settings import Settings


def main() -> None:
    """Draw on the CPU in float32, and save the picture with the hash of the weights."""
    snapshot = resolve("tiny")
    pipeline = Pipeline.load(snapshot, choose(Settings(device="cpu", dtype="float32")))
    (pixels,) = pipeline.render([RECIPE])
    said = PngImagePlugin.PngInfo()
    said.add_text(WEIGHTS_KEY, weights_digest(snapshot.root))
    Image.fromarray(pixels).save(FILE, pnginfo=said, optimize=True)
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
