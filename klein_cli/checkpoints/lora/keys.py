"""A tensor's name in an adapter -> the layer that it is of, and what it is there."""

from __future__ import annotations

import re
from typing import NamedTuple

_PREFIX = re.compile(
    r"(?:base_model\.model\.)?"
    r"(?:model\.diffusion_model\.|diffusion_model\.|transformer\.|unet\.)?"
    r"(?:lora_unet_|lycoris_|lora_transformer_)?"
)
_TEXT_ENCODER = re.compile(
    r"(?:base_model\.model\.)?"
    r"(?:lora_te\d?_|lycoris_(?:te|text)|text_encoders?(?:_?\d)?[._]|text_model[._]|te\d?[._]"
    r"|clip_[lg]\.|t5xxl\.|qwen|conditioner\.|cond_stage_model\.|model\.layers\.)"
)
_KEY = re.compile(
    r"""(?P<path>.+?)
    (?: [._]lora(?:_linear_layer)?[._](?P<half>A|B|up|down|mid)
        (?:\.default)? (?:\.(?P<part>\d{1,3}))? (?:\.(?P<what>weight|bias))?
      | \.(?P<factor>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t[12]))
        (?:\.default)?(?:\.weight)?
      | \.(?P<norm>dora_scale|lora_magnitude_vector|magnitude)(?:\.default)?(?:\.weight)?
      | \.(?P<whole>alpha|diff|diff_b|w_norm|b_norm|set_weight|reshape_weight)
    )""",
    re.VERBOSE,
)
_HALVES = {"A": "down", "B": "up"}
_WHOLE = {"w_norm": "diff", "b_norm": "diff_b"}
_OTHER_KINDS = {
    "OFT": re.compile(r"\.(?:oft_\w+|oft)(?:\.|$)"),
    "BOFT": re.compile(r"\.boft_\w+(?:\.|$)"),
    "GLoRA": re.compile(r"\.[ab][12]\.weight$|\.glora"),
    "IA3": re.compile(r"\.(?:ia3_l|on_input)(?:\.|$)"),
    "VeRA": re.compile(r"vera_(?:lambda|[AB])"),
}


class Key(NamedTuple):
    """A tensor of a layer: `path` names the layer, `role` says what it is there.

    `part` counts the parts of a layer whose rows were trained apart; 0 where it is whole.
    """

    path: str
    role: str
    part: int


def parsed(name: str) -> Key | None:
    """A tensor's name taken apart; None for one of no known form.

    Roles are up, down, mid, alpha, diff, norm ("lora_B" and "lora_up" are both up), those of LoHa
    and LoKr by their own names, and the rest, which nothing can be done with, by theirs.
    """
    found = _KEY.fullmatch(name)
    if found is None:
        return None
    half = found["half"]
    if half and found["what"] == "bias":
        role = "bias"
    elif half:
        role = _HALVES.get(half, half)
    elif found["norm"]:
        role = "norm"
    else:
        role = found["factor"] or _WHOLE.get(found["whole"], found["whole"])
    path = _PREFIX.sub("", found["path"], count=1)
    return Key(path.removesuffix(".scale"), role, int(found["part"] or 0))


def is_of_text_encoder(name: str) -> bool:
    """Whether a tensor changes a text encoder rather than a transformer."""
    return _TEXT_ENCODER.match(name) is not None


def other_kind(name: str) -> str | None:
    """The kind of adapter, by a tensor's name, where klein does not compute it."""
    return next((kind for kind, form in _OTHER_KINDS.items() if form.search(name)), None)
