"""Draw klein_cli/check/golden*.png, which `klein doctor` compares with: after tiny changed.

python scripts/make_golden.py
"""

from __future__ import annotations

from PIL import Image, PngImagePlugin

from klein_cli.check.golden import EDITED, FILE, RECIPE, WEIGHTS_KEY, edit, weights_digest
from klein_cli.checkpoints.resolve import resolve
from klein_cli.images.store import ImageStore
from klein_cli.pipeline import Pipeline, choose
from klein_cli.settings import Settings


def main() -> None:
    """Draw on the CPU in float32, and save image and edit with the hash of the weights."""
    snapshot = resolve("tiny")
    pipeline = Pipeline.load(snapshot, choose(Settings(device="cpu", dtype="float32")))
    said = PngImagePlugin.PngInfo()
    said.add_text(WEIGHTS_KEY, weights_digest(snapshot.root))
    images = ImageStore()
    for path, recipe in ((FILE, lambda: RECIPE), (EDITED, lambda: edit(images))):
        (pixels,) = pipeline.render([recipe()], images=images)
        Image.fromarray(pixels).save(path, pnginfo=said, optimize=True)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
