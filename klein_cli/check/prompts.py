"""The prompts that `klein verify` draws: every length and every oddity the encoder must bear."""

from __future__ import annotations

PROMPTS = (
    "a red circle on a white background",
    "",
    "\n a newline first,  two spaces, no strip ",
    "typed <|endoftext|> tokens <think> in the middle<|endoftext|>",
    "a small blue star above a large green square on a black background, " * 4,
    "a large yellow triangle to the left of a small red circle on a grey background, " * 14,
    "a blue square below an orange star on a white background, and so on, " * 60,
)
"""Short, empty, not to be stripped, holding special tokens, and ever longer: the last is cut."""
