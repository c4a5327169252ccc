"""klein: words into images at a shell, with FLUX.2 [klein]; and in Python, from this face on.

    from klein_cli import Pipeline

    pipe = Pipeline.open("klein-4b")
    images = pipe("a red fox", seed=7, n=2)
    images[0].save("fox.png")

What is named here is imported when it is asked for: importing klein_cli costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; importing typing takes longer than all this
if TYPE_CHECKING:
    from klein_cli.errors import KleinError as KleinError
    from klein_cli.output.image import Image as Image
    from klein_cli.pipeline import Pipeline as Pipeline
    from klein_cli.recipe import Recipe as Recipe
    from klein_cli.sampling.latents import Latents as Latents
    from klein_cli.settings import Settings as Settings

__version__ = "0.1.0"

_ROOMS = {
    "Image": "klein_cli.output.image",
    "KleinError": "klein_cli.errors",
    "Latents": "klein_cli.sampling.latents",
    "Pipeline": "klein_cli.pipeline",
    "Recipe": "klein_cli.recipe",
    "Settings": "klein_cli.settings",
}

__all__ = ["Image", "KleinError", "Latents", "Pipeline", "Recipe", "Settings", "__version__"]


def __getattr__(name: str) -> object:
    """What `__all__` names, imported now."""
    from importlib import import_module

    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
