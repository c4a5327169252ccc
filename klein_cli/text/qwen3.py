"""Qwen3's tokenizer, which comes with klein for text encoders that come without one.

Its vocabulary is 256 characters that stand for bytes, then a token a merge, then the special
tokens. The merges are Qwen's (Apache-2.0), those of Qwen2 and Qwen3 alike.
"""

from __future__ import annotations

import lzma
from importlib.resources import files
from itertools import chain
from typing import Any

_MERGES = "qwen3-merges.txt.xz"
_BYTES = (*range(33, 127), *range(161, 173), *range(174, 256))
"""Those that stand for themselves."""

_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_ADDED = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen3_tokenizer() -> Any:
    """The `tokenizers.Tokenizer`; it takes less time than to read the official tokenizer.json."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as splitters

    merges = [line.split(" ") for line in _lines()]
    tokens = chain(_byte_characters(), (left + right for left, right in merges))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(a, b) for a, b in merges]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitters.Sequence(
        [
            splitters.Split(Regex(_WORDS), "isolated"),
            splitters.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in _SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in _ADDED])
    return tokenizer


def _lines() -> list[str]:
    compressed = files(__package__).joinpath(_MERGES).read_bytes()
    return lzma.decompress(compressed).decode("utf-8").strip("\n").split("\n")


def _byte_characters() -> list[str]:
    """Bytes that are printed stand for themselves, the others come after all of Latin-1."""
    rest = 256 - len(_BYTES)
    return [chr(byte) for byte in (*_BYTES, *range(256, 256 + rest))]
