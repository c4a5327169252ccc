"""How each tensor of a file is stored: plain, or packed with companions such as scales.

Decided layer by layer, from names, dtypes and shapes, and from what the file declares, never from
its name. Every tensor is consumed by exactly one rule, or the file is refused naming it: 8-bit
weights without their scales still give an image that looks like one. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from klein_cli.checkpoints.source import DAMAGED, Packing, Stored
from klein_cli.errors import ModelError

INSTEAD = "get the same model in bfloat16, in fp8 or nvfp4 as for ComfyUI, or as GGUF"

_PLAIN = {"F64", "F32", "F16", "BF16", "I64", "I32", "BOOL"}
"""Whole numbers among them count batches."""
_FLOATS = {"F32", "F16", "BF16"}
_FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""By the names of their formats in what a file declares."""

_FOREIGN = {
    r"\.(absmax|quant_map|quant_state\..+)$": "bitsandbytes, in 4 bits",
    r"\.SCB$": "bitsandbytes, in int8",
    r"\._(data|scale|shift)$": "quanto",
    r"_weight_qdata$": "torchao",
    r"\.(wscales|wcscales|wtscale|smooth_factor|proj_down)$": "nunchaku",
    r"\.(svd_up|svd_down|zero_point)$": "SDNQ",
    r"\.(qzeros|weight_zeros|g_idx)$": "AWQ or GPTQ",
    r"\.(weight_codebook|weight_s_rel|weight_s_channel)$": "asym_w4a8_int8",
    r"\.(encoded_exponent|sign_mantissa)$": "DFloat11",
}
"""What klein does not unpack, by how tensors' names end."""

_UNUSED = ("input_scale", "scale_input")
"""What a layer's inputs would be divided by, where they are in 8 bits too."""
_SCALE_NAMES = ("weight_scale", "scale_weight", "weight_scale_inv")
_SIBLINGS = (*_SCALE_NAMES, "weight_scale_2", "comfy_quant", *_UNUSED)
_MOST_DECLARED = 4096
"""Bytes of what one layer says of itself."""
_TILE = 128
_MOST_NAMED = 3
_WORDS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_NVFP4_BLOCK = 16


def packed(
    tensors: Mapping[str, Stored], metadata: Mapping[str, Any], place: str, prefix: str = ""
) -> dict[str, Stored]:
    """The tensors of a file, each with how it is packed; what belongs to another is gone.

    `prefix` may stand before the names of layers that the metadata declares, and no more before
    those of the tensors. Raises ModelError for a kind that klein does not unpack, and for a tensor
    that belongs to none.
    """
    if all(held.dtype in _PLAIN for held in tensors.values()) and not _suspects(tensors):
        return dict(tensors)
    _refuse_foreign(tensors, place)
    declared = _declared(tensors, metadata, place, prefix)
    kept = dict(tensors)
    kept.pop("scaled_fp8", None)
    layers = _Layers(kept, declared, str(metadata.get("quantization", "")), place)
    found = {name: layers.taken(name, held) for name, held in layers.weights()}
    left = sorted(kept.keys() - found.keys() - layers.consumed)
    left = [name for name in left if not name.endswith(_UNUSED)]
    if left:
        raise ModelError(
            f"{place} holds {left[0]}, which belongs to no weights that klein knows", INSTEAD
        )
    lacking = sorted(declared.keys() - layers.quantised)
    if lacking:
        raise ModelError(f"{place} declares {lacking[0]} as quantised, and it is not", DAMAGED)
    return found


def kind_of(held: Stored) -> str:
    """How one tensor is stored, in a word or two."""
    return held.packing.kind if held.packing else _WORDS.get(held.dtype, held.dtype)


def summary(tensors: Mapping[str, Stored]) -> str:
    """How weights are stored, in words: the kinds of most of them, the most bytes first."""
    sizes: Counter[str] = Counter()
    for held in tensors.values():
        sizes[kind_of(held)] += held.end - held.begin
    whole = sum(sizes.values())
    kept = [kind for kind, size in sizes.most_common(_MOST_NAMED) if size * 50 >= whole]
    return ", ".join(kept) or "nothing"


class _Layers:
    """The layers of one file while its tensors are consumed."""

    def __init__(
        self,
        tensors: Mapping[str, Stored],
        declared: Mapping[str, Mapping[str, Any]],
        layout: str,
        place: str,
    ) -> None:
        self.consumed: set[str] = set()
        self.quantised: set[str] = set()
        self._tensors = tensors
        self._declared = declared
        self._layout = layout
        self._place = place
        self._has_scales = bool(_suspects(tensors))

    def weights(self) -> Iterator[tuple[str, Stored]]:
        """The tensors that are no other's companions, as far as names say."""
        ends = tuple(f".{sibling}" for sibling in _SIBLINGS)
        for name, held in self._tensors.items():
            if not name.endswith(ends):
                yield name, held

    def taken(self, name: str, held: Stored) -> Stored:
        """A tensor with its packing, and what that takes consumed."""
        layer = name.removesuffix(".weight")
        if held.dtype in _PLAIN or held.packing is not None:
            return held
        said = self._declared.get(layer)
        if self._declared and said is None:
            raise self._refusal(name, held, "which the file does not declare")
        self.consumed.add(f"{layer}.comfy_quant")
        self.quantised.add(layer)
        if held.dtype in _FP8:
            return self._fp8(layer, held, said)
        if held.dtype == "I8":
            return self._int8(layer, held, said)
        if held.dtype == "U8" and f"{layer}.weight_scale_2" in self._tensors:
            return self._nvfp4(layer, held, said)
        raise self._refusal(name, held)

    def _fp8(self, layer: str, held: Stored, said: Mapping[str, Any] | None) -> Stored:
        self._check_format(layer, said, _FP8[held.dtype])
        spelling = next((s for s in _SCALE_NAMES if f"{layer}.{s}" in self._tensors), None)
        if spelling is None:
            if self._has_scales:
                raise self._refusal(f"{layer}.weight", held, "without its scale")
            return held._replace(packing=Packing("fp8", {}))
        scale = self._companion(layer, spelling, _FLOATS)
        count, columns = held.shape[0], prod(held.shape[1:])
        tiles = (-(-count // _TILE), -(-columns // _TILE))
        if prod(scale.shape) == 1 or scale.shape in ((count,), (count, 1)):
            kind = "fp8"
        elif len(scale.shape) == 3 and scale.shape[::2] == (count, 1):
            kind = "fp8 groups"
            if not scale.shape[1] or columns % scale.shape[1]:
                raise self._scale_refusal(layer, scale, held)
        elif scale.shape == tiles:
            kind = "fp8 blocks"
        else:
            raise self._scale_refusal(layer, scale, held)
        return held._replace(packing=Packing(kind, {"scale": scale}))

    def _int8(self, layer: str, held: Stored, said: Mapping[str, Any] | None) -> Stored:
        if said is None:  # whether it is rotated is not to be seen
            raise self._refusal(f"{layer}.weight", held, "without saying how")
        self._check_format(layer, said, "int8_tensorwise")
        scale = self._companion(layer, "weight_scale", _FLOATS)
        if prod(scale.shape) != 1 and scale.shape not in ((held.shape[0],), (held.shape[0], 1)):
            raise self._scale_refusal(layer, scale, held)
        if not said.get("convrot"):
            return held._replace(packing=Packing("int8", {"scale": scale}))
        group = said.get("convrot_groupsize")
        if not isinstance(group, int) or not _is_power_of_four(group) or held.shape[-1] % group:
            raise self._refusal(f"{layer}.weight", held, f"rotated in groups of {group}")
        return held._replace(packing=Packing("int8 rotated", {"scale": scale}, group=group))

    def _nvfp4(self, layer: str, held: Stored, said: Mapping[str, Any] | None) -> Stored:
        is_linear = self._layout == "nvfp4"
        if is_linear == (said is not None) or len(held.shape) != 2:
            # Names, shapes and dtypes are the same in both layouts.
            raise self._refusal(
                f"{layer}.weight", held, "as nvfp4 without saying in which of its two layouts"
            )
        if not is_linear:
            self._check_format(layer, said, "nvfp4")
        scale = self._companion(layer, "weight_scale", {"F8_E4M3", "U8"})
        scale_2 = self._companion(layer, "weight_scale_2", {"F32"})
        count, columns = held.shape[0], 2 * held.shape[1]
        blocks = columns // _NVFP4_BLOCK
        wanted = (count, blocks) if is_linear else (-(-count // 128) * 128, -(-blocks // 4) * 4)
        if columns % _NVFP4_BLOCK or scale.shape != wanted or prod(scale_2.shape) != 1:
            raise self._scale_refusal(layer, scale, held)
        packing = Packing(
            "nvfp4 linear" if is_linear else "nvfp4", {"scale": scale, "scale_2": scale_2}
        )
        return held._replace(shape=(count, columns), packing=packing)

    def _companion(self, layer: str, spelling: str, dtypes: set[str]) -> Stored:
        name = f"{layer}.{spelling}"
        held = self._tensors.get(name)
        if held is None:
            raise ModelError(f"{self._place} lacks {name}", DAMAGED)
        if held.dtype not in dtypes:
            what = "mxfp8" if held.dtype in ("U8", "F8_E8M0") else f"scales in {held.dtype}"
            raise ModelError(f"{self._place} holds {what}, which klein does not unpack", INSTEAD)
        self.consumed.add(name)
        return held

    def _check_format(self, layer: str, said: Mapping[str, Any] | None, wanted: str) -> None:
        found = wanted if said is None else str(said.get("format"))[:40]
        if found != wanted:
            raise ModelError(
                f"{self._place} declares {layer} as {found}, which klein does not unpack from what "
                "is there",
                INSTEAD,
            )

    def _refusal(self, name: str, held: Stored, how: str = "") -> ModelError:
        stored = " ".join(filter(None, (f"stored as {held.dtype}", how)))
        return ModelError(f"{self._place}: {name} is {stored}, which klein cannot unpack", INSTEAD)

    def _scale_refusal(self, layer: str, scale: Stored, held: Stored) -> ModelError:
        return ModelError(
            f"{self._place}: the scales of {layer} have shape {scale.shape}, which does not fit "
            f"weights of {held.shape}",
            INSTEAD,
        )


def _suspects(tensors: Mapping[str, Stored]) -> list[str]:
    """Tensors that are there for the sake of others: scales and what says how."""
    ends = tuple(f".{s}" for s in _SIBLINGS if s not in _UNUSED)
    patterns = [re.compile(pattern) for pattern in _FOREIGN]
    return [
        name
        for name in tensors
        if name.endswith(ends) or any(pattern.search(name) for pattern in patterns)
    ]


def _refuse_foreign(tensors: Mapping[str, Stored], place: str) -> None:
    def refuse(who: str) -> ModelError:
        return ModelError(f"{place} is quantised by {who}, which klein does not unpack", INSTEAD)

    for pattern, who in _FOREIGN.items():
        if any(re.search(pattern, name) for name in tensors):
            raise refuse(who)
    for name, held in tensors.items():
        layer = name.removesuffix(".weight")
        if name == layer or held.dtype in _PLAIN:
            continue
        if held.dtype == "U32" and f"{layer}.scales" in tensors:
            raise refuse("MLX")
        if f"{layer}.scale" in tensors:
            raise refuse("SDNQ")
    if any(name.endswith(".qweight") for name in tensors):
        raise refuse("nunchaku, AWQ or GPTQ")


def _declared(
    tensors: Mapping[str, Stored], metadata: Mapping[str, Any], place: str, prefix: str
) -> dict[str, Mapping[str, Any]]:
    """What the file says of its layers, in its metadata or beside each of them."""
    found: dict[str, Mapping[str, Any]] = {}
    text = metadata.get("_quantization_metadata")
    if text is not None:
        layers = _table(text, place).get("layers", {})
        if not isinstance(layers, dict) or not all(isinstance(x, dict) for x in layers.values()):
            raise ModelError(f"{place} declares how it is quantised in a broken way", DAMAGED)
        found |= {name.removeprefix(prefix): said for name, said in layers.items()}
    for name, held in tensors.items():
        if name.endswith(".comfy_quant"):
            said = _table(_bytes(held, place), place)
            layer = name.removesuffix(".comfy_quant")
            if found.get(layer, said).get("format") != said.get("format"):
                raise ModelError(f"{place} declares {layer} in two ways", DAMAGED)
            found[layer] = said
    return found


def _table(text: Any, place: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise ModelError(f"{place} declares how it is quantised in a broken way", DAMAGED)
    return table


def _bytes(held: Stored, place: str) -> bytes:
    if held.end - held.begin > _MOST_DECLARED:
        raise ModelError(f"{place} declares how it is quantised in a broken way", DAMAGED)
    try:
        with held.path.open("rb") as file:
            file.seek(held.begin)
            return file.read(held.end - held.begin)
    except OSError as error:
        raise ModelError(f"{held.path} cannot be read: {error}", DAMAGED) from None


def _is_power_of_four(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0 and number.bit_length() % 2 == 1
