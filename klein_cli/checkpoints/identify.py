"""What a file is, from its header alone: never from its name.

It is a part of FLUX.2 [klein], or several; an adapter; or something else, which is refused by its
name where that is known. Imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from klein_cli.checkpoints.gguf import MAGIC, read_gguf
from klein_cli.checkpoints.header import Header, read_header
from klein_cli.checkpoints.source import DAMAGED, Stored, unreadable
from klein_cli.errors import ModelError

PART_NAMES = {"transformer": "transformer", "text_encoder": "text encoder", "vae": "VAE"}
KLEIN_ONLY = "klein runs FLUX.2 [klein] only: get its files"

_MARKERS = {
    "transformer": r"double_stream_modulation_img\.lin(?:ear)?\.weight",
    "text_encoder": r"(?:model\.)?layers\.0\.self_attn\.q_norm\.weight|blk\.0\.attn_q_norm\.weight",
    "vae": r"bn\.running_mean",
}
"""A tensor that no other model has under this name, for each part."""

_PREFIXES = {
    "transformer": r"(?:model\.)?diffusion_model\.|transformer\.|",
    "text_encoder": r"text_encoders?\.(?:[\w-]+\.transformer\.)?|",
    "vae": r"vae\.|first_stage_model\.|",
}
"""What may stand before all names of a part."""

_ADAPTER = re.compile(
    r"lora_[AB]\b|lora_(?:down|up|mid)\b|lora\.(?:down|up)\b|lora_linear_layer|lokr_|hada_|"
    r"dora_scale|\.magnitude$|lora_magnitude_vector|\.diff(?:_b)?$|\boft_|\bboft_|oft_diag"
)

_FOREIGN = {
    r"distilled_guidance_layer\.": "a transformer of Chroma",
    r"double_blocks\.\d+\.(?:img_mod|txt_mod)\.lin\.": "a transformer of FLUX.1",
    r"single_transformer_blocks\.\d+\.proj_mlp\.": "a transformer of FLUX.1",
    r"double_blocks\.\d+\.img_attn_qkv\.": "a transformer of HunyuanVideo",
    r"joint_blocks\.\d+\.": "a transformer of Stable Diffusion 3",
    r"transformer_blocks\.\d+\.img_mod\.1\.": "a transformer of Qwen-Image",
    r"noise_refiner\.\d+\.|cap_embedder\.": "a transformer of Z-Image or Lumina",
    r"(?:^|\.)blocks\.\d+\.cross_attn\.": "a transformer of Wan",
    r"patchify_proj\.": "a transformer of LTX-Video",
    r"(?:^|\.)input_blocks\.\d+\.|down_blocks\.\d+\.attentions\.\d+\.transformer_blocks\.": (
        "a UNet of Stable Diffusion"
    ),
    r"control_(?:model|net)|controlnet_": "a ControlNet",
    r"(?:^|\.)visual\.|language_model\.|vision_tower\.": "a language model that sees images",
    r"\.mlp\.experts\.|ffn_gate_exps": "a language model with experts",
    r"encoder\.block\.\d+\.layer\.|enc\.blk\.": "a text encoder of the T5 kind",
    r"text_model\.encoder\.|transformer\.resblocks\.": "a text encoder of the CLIP kind",
    r"layers\.0\.self_attn\.q_proj\.|blk\.0\.attn_q\.": "a language model other than Qwen3",
    r"decoder\.(?:conv_in|up_blocks|up)\.": "a VAE of another model",
    r"model\.\d+\.(?:weight|bias)$|body\.\d+\.rdb|upsampler\.": "an upscaler",
}
"""Other models, by a name that theirs have and klein's have not; the first that fits counts."""

_NOT_WEIGHTS = {
    b"<": "is a web page, not a model",
    b"version https://git-lfs": "is a pointer of Git LFS, not the model itself",
    b"PK\x03\x04": "is pickled by torch",
    b"\x80": "is pickled",
}


class Contents(NamedTuple):
    """A file's header, and the parts that it holds, each with the prefix of its names."""

    header: Header
    prefixes: Mapping[str, str]

    def of(self, part: str) -> dict[str, Stored]:
        """The tensors of one part, by their names without its prefix."""
        prefix = self.prefixes[part]
        others = tuple(other for other in self.prefixes.values() if len(other) > len(prefix))
        return {
            name.removeprefix(prefix): held
            for name, held in self.header.tensors.items()
            if name.startswith(prefix) and not (others and name.startswith(others))
        }


def contents(path: Path) -> Contents:
    """What a file holds. Raises ModelError when it is damaged, or no part of FLUX.2 [klein].

    A file that has not changed since is not read again: a vocabulary takes its time.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    return _contents(path.absolute(), path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=8)
def _contents(absolute: Path, path: Path, size: int, changed: int) -> Contents:
    header = read_any_header(path)
    if is_adapter(header.tensors):
        raise ModelError(f"{path} is an adapter, not a model", "add it to a model: --lora FILE")
    prefixes = {
        part: prefix
        for part, marker in _MARKERS.items()
        if (prefix := _prefix(part, marker, header.tensors)) is not None
    }
    _check(path, header, prefixes)
    return Contents(header, prefixes)


def read_any_header(path: Path) -> Header:
    """The header of a safetensors or a GGUF file.

    Raises ModelError for anything else.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(32)
    except OSError as error:
        raise unreadable(path, error) from None
    if begins.startswith(MAGIC):
        return read_gguf(path)
    for magic, what in _NOT_WEIGHTS.items():
        if begins.lstrip().startswith(magic) and not _is_length(begins):
            pickled = "klein never opens pickled weights: get them as safetensors"
            raise ModelError(f"{path} {what}", pickled if "pickled" in what else DAMAGED)
    return read_header(path)


def begins_like_a_model(path: Path) -> bool:
    """Whether a file begins as safetensors or GGUF do; a pipe or a device is none."""
    if not os.path.isfile(path):
        return False
    try:
        with path.open("rb") as file:
            begins = file.read(32)
    except OSError:
        return False
    return begins.startswith(MAGIC) or _is_length(begins)


def is_adapter(names: Iterable[str]) -> bool:
    """Whether tensors of these names change a model, and are none themselves."""
    return any(_ADAPTER.search(name) for name in names)


def _is_length(begins: bytes) -> bool:
    """Whether the first bytes are the length of a header of safetensors, and its first brace."""
    return begins[8:9] == b"{" and begins[6:8] == b"\0\0"


def _prefix(part: str, marker: str, names: Iterable[str]) -> str | None:
    pattern = re.compile(rf"({_PREFIXES[part]})(?:{marker})")
    return next((match[1] for name in names if (match := pattern.fullmatch(name))), None)


def _check(path: Path, header: Header, prefixes: Mapping[str, str]) -> None:
    names = header.tensors
    if "transformer" in prefixes and any("guidance_in." in name for name in names):
        raise ModelError(f"{path} holds a transformer of FLUX.2 [dev]", KLEIN_ONLY)
    if "transformer" in prefixes and any("guidance_embedder." in name for name in names):
        raise ModelError(f"{path} holds a transformer of FLUX.2 [dev]", KLEIN_ONLY)
    architecture = header.metadata.get("general.architecture")
    if "text_encoder" in prefixes and architecture not in (None, "qwen3"):
        raise ModelError(f"{path} holds a text encoder of the kind {architecture!r}", KLEIN_ONLY)
    foreign = _foreign(names, prefixes)
    if foreign is not None:
        raise ModelError(f"{path} holds {foreign}", KLEIN_ONLY)
    if not prefixes:
        raise ModelError(f"{path} holds no part of FLUX.2 [klein]", KLEIN_ONLY)


def _foreign(names: Iterable[str], prefixes: Mapping[str, str]) -> str | None:
    """What else the file is, by tensors that no part of klein has."""
    for pattern, what in _FOREIGN.items():
        own = {"VAE": "vae", "Qwen3": "text_encoder"}
        if any(word in what and part in prefixes for word, part in own.items()):
            continue
        if any(re.search(pattern, name) for name in names):
            return what
    return None
