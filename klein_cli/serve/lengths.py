"""Prompts that are too long for the model: refused if the request is strict, else told of.

The tokenizer is read when a prompt is first so long that it must be measured: it takes a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cached_property

from klein_cli.serve.errors import ApiError
from klein_cli.serve.fields import Asked
from klein_cli.text.tokenizer import PromptTokenizer, surely_fits


class PromptLengths:
    """Measures with the tokenizer that `load` makes, in a thread."""

    def __init__(self, load: Callable[[], PromptTokenizer]) -> None:
        self._load = load

    async def check(self, asked: Asked) -> None:
        """Add to a request's warnings what the model will not see. Raises ApiError if the request
        is strict.
        """
        first = asked.recipes[0]
        texts = {"prompt": first.prompt, "negative_prompt": first.negative_prompt or ""}
        for name, text in texts.items():
            cut = None if surely_fits(text) else await asyncio.to_thread(self._cut, text)
            if cut is None:
                continue
            if asked.strict:
                message = f"{name} is too long: {cut}; shorten it, or leave out strict"
                raise ApiError(400, message, param=name, code="context_length_exceeded")
            asked.warnings.append(cut if name == "prompt" else f"{name}: {cut}")

    def _cut(self, text: str) -> str | None:
        return self._tokenizer.tokenize(text).warning()

    @cached_property
    def _tokenizer(self) -> PromptTokenizer:
        return self._load()
