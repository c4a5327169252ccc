"""Settings: how a run computes its pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

DEVICES = ("auto", "cuda", "cpu")
DTYPES = ("auto", "bfloat16", "float16", "float32")
ENGINES = ("native", "diffusers")
ATTENTIONS = ("auto", "sdpa", "flash-attn", "eager")
RNGS = ("cpu", "cuda")
KERNELS = ("auto", "triton", "torch")
QUANTIZATIONS = ("none", "fp8")

_ONE_GPU = re.compile(r"cuda:(0|[1-9][0-9]?)")
"""torch keeps a number in eight bits, and takes cuda:256 for cuda:0 without a word."""


def is_device(name: str) -> bool:
    """Whether `name` is one of DEVICES, or cuda:N with N from 0 to 99."""
    return name in DEVICES or _ONE_GPU.fullmatch(name) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a run computes its pictures: every choice here may change a bit and is recorded.

    `auto` stands only until `klein_cli.device.choose.choose` has looked at the machine.
    """

    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    engine: str = "native"
    rng: str = "cpu"
    kernels: str = "auto"
    quantize: str = "none"

    def with_(self, **changes: str) -> Settings:
        """A copy with some fields changed."""
        return replace(self, **changes)
