"""Recipe: everything one image depends on, validated once.

The first thing made from the user's words, and the last thing written into the PNG.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from klein_cli.errors import UsageError

PIXELS_PER_TOKEN = 16
"""A token of latents is a square of so many pixels a side, so sides are multiples of it."""
MAX_SEED = 2**63 - 1
CPU_SEEDS = 2**32
"""So many torch's generator on the CPU tells apart: it reads the lower 32 bits."""
MAX_SIDE = 4096
MAX_STEPS = 1000
MAX_PROMPT = 40_000
"""Characters: many times what a model reads, and few enough for an image's record."""


class Shape(NamedTuple):
    """What the images of a batch have in common. Sides in pixels."""

    width: int
    height: int
    steps: int
    guidance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What draws: a model by `name`, and which of that name.

    `repo` and `revision`, a commit, are its place on the hub, None for a folder and for the
    embedded model; `weights` is the fingerprint of its files, None where nobody has looked.
    """

    name: str
    repo: str | None = None
    revision: str | None = None
    weights: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One image. Sizes in pixels; `guidance` 1 means no classifier-free guidance.

    Raises UsageError when a value cannot make an image.
    """

    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    model: str
    negative_prompt: str | None = None

    def __post_init__(self) -> None:
        for what, text in (("prompt", self.prompt), ("negative prompt", self.negative_prompt)):
            if text is not None and len(text) > MAX_PROMPT:
                raise UsageError(
                    f"the {what} has {len(text):,} characters",
                    f"use at most {MAX_PROMPT:,}, of which a model reads the first few thousand",
                )
        check_sides(self.width, self.height)
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(
                f"seed {self.seed} is out of range", f"use a whole number from 0 to {MAX_SEED}"
            )
        if not 1 <= self.steps <= MAX_STEPS:
            raise UsageError(
                f"steps {self.steps} is out of range", f"use a whole number from 1 to {MAX_STEPS}"
            )
        check_guidance(self.guidance)

    @property
    def shape(self) -> Shape:
        """Recipes that share it can be denoised as one batch."""
        return Shape(self.width, self.height, self.steps, self.guidance)


def check_guidance(guidance: float) -> None:
    """Raise UsageError for a number that is not a valid guidance, NaN among them."""
    if not 0.0 <= guidance <= 100.0:
        raise UsageError(f"guidance {guidance} is out of range", "use a number from 0 to 100")


def check_sides(width: int, height: int) -> None:
    """Raise UsageError for sides in pixels that no image has."""
    _check_side("width", width)
    _check_side("height", height)


def _check_side(name: str, pixels: int) -> None:
    if pixels <= 0 or pixels % PIXELS_PER_TOKEN:
        below = max(PIXELS_PER_TOKEN, pixels // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN)
        near = str(below) if pixels <= below else f"{below} or {below + PIXELS_PER_TOKEN}"
        raise UsageError(f"{name} {pixels} is not a multiple of {PIXELS_PER_TOKEN}", f"use {near}")
    if pixels > MAX_SIDE:
        raise UsageError(f"{name} {pixels} is too large", f"use at most {MAX_SIDE}")
