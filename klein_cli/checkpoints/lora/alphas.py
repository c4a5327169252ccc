"""How strongly an adapter's layers are meant: alphas, from tensors or from what is written."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, prod, sqrt
from pathlib import Path
from typing import Any

from klein_cli.checkpoints.source import Stored
from klein_cli.errors import ModelError

CONFIG_FILE = "adapter_config.json"
HEADER_CONFIG = "lora_adapter_metadata"

_MOST_CONFIG = 1_000_000
_BROKEN = "the file is damaged: get it again"
_READ = {"F64": "<d", "F32": "<f", "F16": "<e", "BF16": "<f", "I64": "<q", "I32": "<i"}
_KINDS = {"LORA": "LoRA", "LOHA": "LoHa", "LOKR": "LoKr"}
_LITERAL = re.compile(r"[\w.-]+")


def scalar(where: str, held: Stored) -> float:
    """The one number that a tensor holds. Raises ModelError when it holds more, or none."""
    if prod(held.shape) != 1 or held.dtype not in _READ:
        raise ModelError(f"{where} has an alpha that is not one number", _BROKEN)
    try:
        with held.path.open("rb") as file:
            file.seek(held.begin)
            data = file.read(held.end - held.begin)
    except OSError as error:
        raise ModelError(f"{held.path} cannot be read: {error}", _BROKEN) from None
    if held.dtype == "BF16":  # the upper half of a float32
        data = b"\0\0" + data
    try:
        (number,) = struct.unpack(_READ[held.dtype], data)
    except struct.error:
        raise ModelError(f"{held.path} ends too early", _BROKEN) from None
    return float(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strengths:
    """What peft or diffusers wrote of an adapter beside its tensors.

    `kind` is the kind that peft calls it, None where peft did not write it. Alphas are by name, and
    `alpha` and `rank` those of all other layers.
    """

    kind: str | None = None
    alpha: float | None = None
    rank: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False

    def scale(self, path: str, kind: str, alpha: float | None, rank: int | None) -> float:
        """What a layer's product is multiplied by; `alpha` is that of its own tensor.

        As those who train compute it: a LoKr of two whole factors has no rank, and its alpha is not
        used; but in peft it has the rank that was asked for.
        """
        if alpha is None:
            alpha = _of(path, self.alphas, self.alpha)
            if kind == "LoKr" and self.kind == "LoKr":
                written = _of(path, self.ranks, self.rank)
                return 1.0 if alpha is None or not written else alpha / written
            if alpha is None or rank is None:
                return 1.0
            return alpha / (sqrt(rank) if self.by_root else rank)
        # Trainers take an alpha of 0 for the rank.
        return 1.0 if rank is None or alpha == 0 else alpha / rank


def read_strengths(file: Path, metadata: Mapping[str, Any]) -> Strengths:
    """What the header says, or the adapter_config.json beside an adapter_model.safetensors.

    Raises ModelError when that is broken, or asks for what klein does not compute.
    """
    if HEADER_CONFIG in metadata:
        table = _parsed(f"{file}: {HEADER_CONFIG}", str(metadata[HEADER_CONFIG]))
        start = "transformer."
        return _strengths(
            f"{file}: {HEADER_CONFIG}",
            {name.removeprefix(start): value for name, value in table.items()},
        )
    config = file.parent / CONFIG_FILE
    if file.name == "adapter_model.safetensors" and config.is_file():
        try:
            if config.stat().st_size > _MOST_CONFIG:
                raise ModelError(f"{config} is too long", _BROKEN)
            text = config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{config} cannot be read: {error}", _BROKEN) from None
        return _strengths(str(config), _parsed(str(config), text))
    return Strengths()


def _parsed(where: str, text: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise ModelError(f"{where} is not valid JSON", _BROKEN)
    return table


def _strengths(where: str, table: Mapping[str, Any]) -> Strengths:
    kind = table.get("peft_type", "LORA")
    if kind not in _KINDS:
        raise ModelError(
            f"{where} describes an adapter of the kind {str(kind)[:40]}",
            "klein reads LoRA, LoHa, LoKr, DoRA and full differences",
        )
    rank = table.get("r")
    key = "lora_alpha" if kind == "LORA" else "alpha"
    return Strengths(
        kind=_KINDS[kind],
        alpha=_number(where, key, table.get(key)),
        rank=_number(where, "r", rank),
        alphas=_numbers(where, "alpha_pattern", table.get("alpha_pattern")),
        ranks=_numbers(where, "rank_pattern", table.get("rank_pattern")),
        by_root=table.get("use_rslora") is True,
    )


def _numbers(where: str, name: str, table: Any) -> dict[str, float]:
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise ModelError(f"{where}: {name} is not a table", _BROKEN)
    found = {}
    for pattern, value in table.items():
        # peft takes them for regular expressions; those that are written are names.
        module = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        number = _number(where, name, value)
        if not _LITERAL.fullmatch(module) or number is None:
            raise ModelError(
                f"{where}: {name} names {pattern[:60]!r}, which is not the name of a layer",
                "save the adapter with its layers by name",
            )
        found[module] = number
    return found


def _number(where: str, name: str, value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) < 1e30 or not isfinite(value):
        raise ModelError(f"{where}: {name} is {str(value)[:40]}, not a number", _BROKEN)
    return float(value)


def _of(path: str, table: Mapping[str, float], otherwise: float | None) -> float | None:
    """The entry of a layer, by its whole name or by the end of it, as peft looks for it."""
    words = path.split(".")
    ends = (".".join(words[first:]) for first in range(len(words)))
    return next((table[end] for end in ends if end in table), otherwise)
