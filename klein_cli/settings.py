"""Settings: how a run computes its images."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from klein_cli.errors import UsageError

_ONE_GPU = re.compile(r"cuda:(0|[1-9][0-9]?)")
"""torch keeps a number in eight bits, and takes cuda:256 for cuda:0 without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one field of Settings may be: one of `words`, or what matches the `pattern`.

    `forms` is how that is written for people, `help` what --help says of it, and `label` what goes
    before it where settings are listed.
    """

    words: tuple[str, ...]
    forms: tuple[str, ...]
    help: str
    label: str
    pattern: re.Pattern[str] | None = None

    def allows(self, word: str) -> bool:
        """Whether a word is a valid choice."""
        return word in self.words or bool(self.pattern and self.pattern.fullmatch(word))


def _choice(*words: str, forms: tuple[str, ...] = (), **facts: Any) -> Any:
    """A field with its Choice; the first of the words is the default."""
    choice = Choice(words=words, forms=forms or words, **facts)
    return field(default=words[0], metadata={"choice": choice})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a run computes its images: every choice here may change a bit and is recorded.

    `auto` stands only until `klein_cli.device.choose.choose` has looked at the machine. A field is
    an option of the same name, which takes its words and its help from here. Raises UsageError for
    a word that is not a valid choice.
    """

    device: str = _choice(
        *("auto", "cuda", "cpu", "mps"),
        pattern=_ONE_GPU,
        forms=("auto", "cuda", "cuda:N", "cpu", "mps"),
        label="",
        help="Where to run; mps is the GPU of a Mac, which nobody has tried yet.",
    )
    dtype: str = _choice(
        *("auto", "bfloat16", "float16", "float32"),
        label="",
        help="Precision. auto is bfloat16 on a GPU and float32 on a CPU.",
    )
    attention: str = _choice(
        *("auto", "sdpa", "flash-attn", "eager"),
        label="attention",
        help="How the text encoder computes attention.",
    )
    engine: str = _choice(
        "native", "diffusers", label="engine", help="Implementation of DiT and VAE."
    )
    rng: str = _choice(
        *("cpu", "cuda"),
        label="noise from",
        help="Where noise is drawn: cpu means the same noise on every machine; cuda, the noise of "
        "the official code on a GPU.",
    )
    kernels: str = _choice(
        *("auto", "triton", "torch"),
        label="kernels",
        help="Kernels for norms, RoPE and activations: Triton's are faster. auto takes them where "
        "they can run.",
    )
    quantize: str = _choice(
        *("none", "fp8"),
        label="quantize",
        help="fp8 computes the transformer's large matrix products in 8 bits: half its memory, a "
        "little less exact, and quicker on the GPUs that can, Ada and Hopper and later.",
    )

    def __post_init__(self) -> None:
        for name, choice in CHOICES.items():
            word = getattr(self, name)
            if not choice.allows(word):
                known = ", ".join(choice.forms)
                raise UsageError(f"--{name} {word} is not valid", f"use {known}")

    @classmethod
    def as_recorded(cls, words: Mapping[str, str]) -> Settings:
        """What an image says of itself, whether or not this klein knows the words.

        They are there to be shown; `with_` raises UsageError for one that is not a valid choice.
        """
        settings = object.__new__(cls)
        for one in fields(cls):
            object.__setattr__(settings, one.name, words.get(one.name, one.default))
        return settings

    def with_(self, **changes: str) -> Settings:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def listed(self, *, leave_out: Container[str] = ()) -> str:
        """In words: "cuda, bfloat16, attention sdpa, engine native, noise from cpu, ..."."""
        return ", ".join(
            f"{choice.label} {getattr(self, name)}".lstrip()
            for name, choice in CHOICES.items()
            if name not in leave_out
        )


CHOICES: dict[str, Choice] = {one.name: one.metadata["choice"] for one in fields(Settings)}
"""What each field of Settings may be, in the order of the fields."""
