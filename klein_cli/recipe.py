"""Recipe: everything one picture depends on, validated once.

The first thing made from the user's words, and the last thing written into the PNG.
"""

from __future__ import annotations

from dataclasses import dataclass

from klein_cli.errors import UsageError

SIZE_MULTIPLE = 16
MAX_SEED = 2**63 - 1
CPU_SEEDS = 2**32
"""So many torch's generator on the CPU tells apart: it reads the lower 32 bits."""
MAX_SIDE = 4096
MAX_STEPS = 1000
MAX_PROMPT = 40_000
"""Characters: many times what a model reads, and few enough for a picture's record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One picture. Sizes in pixels; `guidance` 1 means no classifier-free guidance.

    Raises UsageError when a value cannot make a picture.
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
        _check_side("width", self.width)
        _check_side("height", self.height)
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
    def shape(self) -> tuple[int, int, int, float]:
        """(width, height, steps, guidance): recipes that share it can be denoised as one batch."""
        return self.width, self.height, self.steps, self.guidance


def check_guidance(guidance: float) -> None:
    """Raise UsageError for a number that is no guidance, NaN among them."""
    if not 0.0 <= guidance <= 100.0:
        raise UsageError(f"guidance {guidance} is out of range", "use a number from 0 to 100")


def _check_side(name: str, pixels: int) -> None:
    if pixels <= 0 or pixels % SIZE_MULTIPLE:
        below = max(SIZE_MULTIPLE, pixels // SIZE_MULTIPLE * SIZE_MULTIPLE)
        near = str(below) if pixels <= below else f"{below} or {below + SIZE_MULTIPLE}"
        raise UsageError(f"{name} {pixels} is not a multiple of {SIZE_MULTIPLE}", f"use {near}")
    if pixels > MAX_SIDE:
        raise UsageError(f"{name} {pixels} is too large", f"use at most {MAX_SIDE}")
