"""Prompts -> token ids, padded to 512 as FLUX.2 [klein] was trained.

Needs neither torch nor transformers, so that a prompt too long is known before anything loads.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from klein_cli.checkpoints.folder import read_json, read_text
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.errors import ModelError, UsageError
from klein_cli.text.qwen3 import qwen3_tokenizer

POSITIONS = 512
PAD_TOKEN = "<|endoftext|>"
BEFORE_PROMPT = "<|im_start|>user\n"
AFTER_PROMPT = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

_SURELY_FITS = 400
"""Bytes: no token is less than one, and the template takes some twenty of POSITIONS."""

_REMEMBERED = 64
"""Prompts: they are measured before the model loads, and read again when they are drawn."""

_SPECIAL_TOKENS = (PAD_TOKEN, "<|im_start|>", "<|im_end|>", "<think>", "</think>")
_PROBE = " a prompt\nthat nobody may strip "
_AGAIN = "download the model again"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedPrompt:
    """One prompt as the text encoder reads it.

    `ids` holds POSITIONS token ids, padded on the right; `length` counts those the tokenizer's
    attention mask marks as read (a pad token typed in a prompt is one of them). `cut_tokens`
    found no place, the last of the template and the prompt together; `cut` is the text of the
    prompt among them, "" if none. `tokens` and `room` count the prompt's own tokens and those
    that fit beside the template.
    """

    ids: tuple[int, ...]
    length: int
    cut: str
    cut_tokens: int
    tokens: int
    room: int

    def warning(self) -> str | None:
        """What the model will not see, in one sentence; None when it sees everything."""
        if not self.cut_tokens:
            return None
        long = f"the prompt is {self.tokens} tokens long and {self.room} fit"
        if not self.cut:
            return f"{long}: all of it is read, but the end of the template after it is cut off"
        return f"{long}: the model does not see its end, from {_shortened(self.cut)} on"


class PromptTokenizer:
    """The tokenizer of one snapshot, with the prompt template asserted."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pad_id = int(tokenizer.token_to_id(PAD_TOKEN))
        self._template_tokens = len(self._encode(render("")).ids)
        self._remembered = lru_cache(_REMEMBERED)(self._tokenize)

    @classmethod
    def from_snapshot(cls, root: Path) -> PromptTokenizer:
        """The tokenizer in `root`/tokenizer. See `from_folder`."""
        return cls.from_folder(root / "tokenizer")

    @classmethod
    def from_folder(cls, folder: Path) -> PromptTokenizer:
        """The tokenizer that transformers would find in a folder.

        Raises ModelError when it is absent or broken, lacks a special token as one token, or
        when the snapshot's own chat template does not render a prompt as `render` does.
        """
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        config = read_json(folder / "tokenizer_config.json")
        text = read_text(path)
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise ModelError(f"{path} cannot be read: {error}", _AGAIN) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _check_special_tokens(tokenizer, config, path)
        _check_template(folder, config)
        return cls(tokenizer)

    @classmethod
    def of(cls, snapshot: Snapshot) -> PromptTokenizer:
        """The tokenizer that belongs to a model's text encoder: its own, or the one of klein.

        Raises what `from_folder` raises.
        """
        if snapshot.tokenizer is None:
            return cls(qwen3_tokenizer())
        return cls.from_folder(snapshot.tokenizer)

    @property
    def vocabulary(self) -> int:
        """One more than the largest token id."""
        return 1 + int(max(self._tokenizer.get_vocab(with_added_tokens=True).values()))

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        """The prompt in its template, cut or padded on the right to POSITIONS.

        The rendered string is tokenised whole, since pieces would merge differently, and special
        tokens typed in a prompt are parsed as such: both as upstream. Raises UsageError for text
        that is not valid Unicode.
        """
        return self._remembered(prompt)

    def _tokenize(self, prompt: str) -> TokenizedPrompt:
        encoding = self._encode(render(prompt))
        ids, length = encoding.ids[:POSITIONS], sum(encoding.attention_mask[:POSITIONS])
        cut = ""
        if len(encoding.ids) > POSITIONS:
            first_cut = encoding.offsets[POSITIONS][0] - len(BEFORE_PROMPT)
            cut = prompt[first_cut:]
        return TokenizedPrompt(
            ids=tuple(ids + [self._pad_id] * (POSITIONS - len(ids))),
            length=length,
            cut=cut,
            cut_tokens=max(0, len(encoding.ids) - POSITIONS),
            tokens=len(encoding.ids) - self._template_tokens,
            room=POSITIONS - self._template_tokens,
        )

    def _encode(self, text: str) -> Any:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the prompt is not valid Unicode at character {error.start - len(BEFORE_PROMPT)}",
                "write it in UTF-8",
            ) from None
        return self._tokenizer.encode(text)


def surely_fits(prompt: str) -> bool:
    """Whether a prompt is so short that nothing of it can be cut, whatever the tokenizer."""
    return len(unicodedata.normalize("NFC", prompt).encode()) <= _SURELY_FITS


def render(prompt: str) -> str:
    """The prompt in Qwen3's chat template: no system prompt, thinking off, nothing stripped."""
    return BEFORE_PROMPT + prompt + AFTER_PROMPT


def _check_special_tokens(tokenizer: Any, config: dict[str, Any], path: Path) -> None:
    for token in _SPECIAL_TOKENS:
        if tokenizer.encode(token).ids != [tokenizer.token_to_id(token)]:
            raise ModelError(
                f"{path} does not know {token} as one token",
                "this is not the tokenizer of FLUX.2 [klein]",
            )
    pad = _content(config.get("pad_token", PAD_TOKEN))
    if pad != PAD_TOKEN:
        raise ModelError(
            f"the tokenizer in {path.parent} pads with {pad}, not {PAD_TOKEN}",
            "this is not the tokenizer of FLUX.2 [klein]",
        )


def _check_template(folder: Path, config: dict[str, Any]) -> None:
    """A template that ignores `enable_thinking` drops the think block without a word."""
    source = _template(folder, config)
    tokens = {key: _content(value) for key, value in config.items() if key.endswith("_token")}
    messages = [{"role": "user", "content": _PROBE}]
    try:
        rendered = _compiled(source).render(
            messages=messages, add_generation_prompt=True, enable_thinking=False, **tokens
        )
    except Exception as error:  # a template is code, and may raise anything
        why = str(error) or type(error).__name__
        raise ModelError(f"the chat template in {folder} fails: {why}", _AGAIN) from None
    if rendered != render(_PROBE):
        raise ModelError(
            f"the chat template in {folder} renders {rendered!r}, not {render(_PROBE)!r}",
            "the model was not trained with that: restore the official chat template",
        )


def _template(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    found = read_text(path) if path.is_file() else config.get("chat_template")
    if isinstance(found, list):
        named = [entry for entry in found if isinstance(entry, dict)]
        defaults = [entry.get("template") for entry in named if entry.get("name") == "default"]
        found = defaults[-1] if defaults else None
    if not isinstance(found, str):
        raise ModelError(f"{folder} has no chat template", f"the model is not complete: {_AGAIN}")
    return found


def _compiled(source: str) -> Any:
    """The template in the sandbox that transformers gives it."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = tojson
    return environment.from_string(source)


def _content(token: Any) -> Any:
    """A special token's text: tokenizer_config.json holds it plain or as a table."""
    return token.get("content") if isinstance(token, dict) else token


def _shortened(text: str, most: int = 60) -> str:
    """The beginning of a text, on one line, in quotes."""
    line = " ".join(text.split())
    return f'"{line}"' if len(line) <= most else f'"{line[: most - 1]}…"'
